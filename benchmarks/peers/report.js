// What report.py says, for Node. See there.
'use strict'

const fs = require('node:fs')
const path = require('node:path')

const NOTE = 'forty bytes of payload'
const directory = process.env.REPORT
const each = 'REPORT_EACH' in process.env
let file = null
let total = 0
let told = 0

function now () {
  return process.hrtime.bigint() // the clock that Python calls monotonic
}

function ran (number) {
  if (file === null) {
    const first = now()
    file = fs.openSync(path.join(directory, `${each ? 'jobs' : 'count'}-${process.pid}`), 'w')
    if (!each) setInterval(tell, 5, first)
  }
  if (each) fs.writeSync(file, `${number} ${now()}\n`)
  else total += 1
}

function tell (first) {
  if (total !== told) {
    fs.writeSync(file, `${String(first).padStart(20, '0')} ${String(total).padStart(20, '0')}\n`, 0)
    told = total
  }
}

async function gate () {
  if (!('REPORT_GATE' in process.env)) return
  fs.writeFileSync(path.join(directory, `ready-${process.pid}`), '')
  while (!fs.existsSync(path.join(directory, 'go'))) await sleep(1)
}

function sleep (milliseconds) {
  return new Promise(resolve => setTimeout(resolve, milliseconds))
}

async function timed (body) {
  const began = now()
  await body()
  console.log(JSON.stringify({ seconds: Number(now() - began) / 1e9 }))
}

async function offer (jobs, enqueue) {
  const lines = []
  for (let number = 0; number < jobs; number++) {
    await sleep(20 + number * 17 % 31)
    lines.push(`${number} ${now()}\n`)
    await enqueue(number)
  }
  fs.writeFileSync(path.join(directory, 'sent.part'), lines.join(''))
  fs.renameSync(path.join(directory, 'sent.part'), path.join(directory, 'sent'))
}

function chunks (jobs, size, make) {
  const found = []
  for (let at = 0; at < jobs; at += size) {
    found.push(Array.from({ length: Math.min(size, jobs - at) }, make))
  }
  return found
}

// Runs the verb of the command line; all but `work` end the process.
async function verbs (known) {
  const [verb, jobs] = process.argv.slice(2)
  await known[verb](Number(jobs))
  if (verb !== 'work') process.exit(0)
}

module.exports = { NOTE, ran, gate, timed, offer, chunks, verbs }
