// pg-boss as a contestant's program: see ../report.py for the verbs.
'use strict'

const PgBoss = require('pg-boss')
const { NOTE, ran, gate, timed, offer, chunks, verbs } = require('./report.js')

const QUEUE = 'bench'
const BATCH = 5000 // of a bulk enqueue
const CLAIM = 1000
const WORKERS = 2

const payload = number => ({ user_id: number, note: NOTE })

async function started (options) {
  const boss = new PgBoss({ max: 10, schedule: false, ...options }) // where the environment says (PGHOST …)
  boss.on('error', error => { throw error })
  return boss.start()
}

const producer = () => started({ supervise: false, migrate: false })

verbs({
  schema: async () => (await started({})).createQueue(QUEUE),

  one: async jobs => {
    const boss = await producer()
    await timed(async () => {
      for (let i = 0; i < jobs; i++) await boss.send(QUEUE, payload(7))
    })
  },

  bulk: async jobs => {
    const boss = await producer()
    const calls = chunks(jobs, BATCH, () => ({ name: QUEUE, data: payload(7) }))
    await timed(async () => {
      for (const call of calls) await boss.insert(call)
    })
  },

  work: async () => {
    const boss = await started({ migrate: false })
    await gate()
    for (let i = 0; i < WORKERS; i++) {
      const id = await boss.work(QUEUE, { batchSize: CLAIM, pollingIntervalSeconds: 0.5 }, async jobs => {
        for (const job of jobs) ran(job.data.user_id)
        if (jobs.length === CLAIM) boss.notifyWorker(id)
      })
    }
  },

  offer: async jobs => {
    const boss = await producer()
    await offer(jobs, number => boss.send(QUEUE, payload(number)))
  }
})
