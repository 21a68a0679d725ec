// bullmq as a contestant's program: see ../report.py for the verbs. Redis keeps nothing on disk.
'use strict'

const { Queue, Worker } = require('bullmq')
const { NOTE, ran, gate, timed, offer, chunks, verbs } = require('./report.js')

const NAME = 'bench'
const BATCH = 1000

const connection = { path: process.env.BENCH_REDIS }
const payload = number => ({ user_id: number, note: NOTE })

async function opened () {
  const queue = new Queue(NAME, { connection })
  await queue.waitUntilReady()
  return queue
}

verbs({
  one: async jobs => {
    const queue = await opened()
    await timed(async () => {
      for (let i = 0; i < jobs; i++) await queue.add('noop', payload(7))
    })
  },

  bulk: async jobs => {
    const queue = await opened()
    const calls = chunks(jobs, BATCH, () => ({ name: 'noop', data: payload(7) }))
    await timed(async () => {
      for (const call of calls) await queue.addBulk(call)
    })
  },

  work: async () => {
    const worker = new Worker(NAME, async job => { ran(job.data.user_id) }, {
      connection: { ...connection, maxRetriesPerRequest: null },
      concurrency: 200,
      autorun: false,
      removeOnComplete: { count: 0 }
    })
    await worker.waitUntilReady()
    await gate()
    worker.run()
  },

  offer: async jobs => {
    const queue = await opened()
    await offer(jobs, number => queue.add('noop', payload(number)))
  }
})
