// Records which jobs have run, how often and when, in the format of ../../marks.py.
// Node has no shared memory maps, so changes are written every 20 ms. The file is read first, because others may have cleared it.
import { fstatSync, openSync, readSync, writeSync } from "node:fs";

const A_DOUBLE = 8;
const EVERY = 20;
const file = openSync(process.env.BENCHMARK_MARKS, "r+");
const jobs = fstatSync(file).size / (1 + A_DOUBLE);
let noted = [];

export function mark(number) {
  noted.push(number, Number(process.hrtime.bigint()) / 1e9); // the monotonic clock, which all processes share
}

export function writeOut() {
  if (noted.length === 0) return;
  const buffer = new ArrayBuffer(jobs * (1 + A_DOUBLE));
  readSync(file, new Uint8Array(buffer), 0, buffer.byteLength, 0);
  const runs = new Uint8Array(buffer, 0, jobs);
  const stamps = new Float64Array(buffer, jobs, jobs);
  for (let i = 0; i < noted.length; i += 2) {
    runs[noted[i]] += 1;
    stamps[noted[i]] = noted[i + 1];
  }
  noted = [];
  writeSync(file, new Uint8Array(buffer), 0, buffer.byteLength, 0);
}

setInterval(writeOut, EVERY).unref();
