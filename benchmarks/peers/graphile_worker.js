// graphile-worker as a contestant's program: see ../report.py for the verbs.
'use strict'

const { Logger, makeWorkerUtils, run, runMigrations } = require('graphile-worker')
const { Pool } = require('pg')
const { NOTE, ran, gate, timed, offer, chunks, verbs } = require('./report.js')

const BATCH = 5000

const pgPool = new Pool({ max: 10 }) // where the environment says (PGHOST …)
const logger = new Logger(() => () => {})
const payload = number => ({ user_id: number, note: NOTE })

verbs({
  schema: () => runMigrations({ pgPool, logger }),

  one: async jobs => {
    const utils = await makeWorkerUtils({ pgPool, logger })
    await timed(async () => {
      for (let i = 0; i < jobs; i++) await utils.addJob('noop', payload(7))
    })
  },

  bulk: async jobs => {
    const utils = await makeWorkerUtils({ pgPool, logger })
    const calls = chunks(jobs, BATCH, () => ({ identifier: 'noop', payload: payload(7) }))
    await timed(async () => {
      for (const call of calls) await utils.addJobs(call)
    })
  },

  work: async () => {
    await gate()
    await run({
      pgPool,
      logger,
      noHandleSignals: true,
      preset: { worker: { concurrentJobs: 100, localQueue: { size: 5000 }, completeJobBatchDelay: 0 } },
      taskList: { noop: async given => ran(given.user_id) }
    })
  },

  offer: async jobs => {
    const utils = await makeWorkerUtils({ pgPool, logger })
    await offer(jobs, number => utils.addJob('noop', payload(number)))
  }
})
