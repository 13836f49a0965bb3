// graphile-worker with its local queue and batched completion, as its documentation advises for throughput.
import { Logger, makeWorkerUtils, run as runWorker } from "graphile-worker";
import { run } from "./contract.mjs";

const connectionString = process.env.PEER_URL;
const logger = new Logger(() => () => {});

async function setUp() {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await utils.migrate();
  await utils.release();
}

async function sending() {
  const utils = await makeWorkerUtils({ connectionString, logger, maxPoolSize: 32 });
  return {
    send: (number) => utils.addJob("note", { number }),
    sendMany: (numbers) => utils.addJobs(numbers.map((number) => ({ identifier: "note", payload: { number } }))),
    sendAt: (number, instant) => utils.addJob("note", { number }, { runAt: new Date(1000 * instant) }),
  };
}

async function work(concurrency) {
  const { mark, writeOut } = await import("./marks.mjs");
  const throughput = process.env.PEER_VARIANT === "throughput";
  const batches = { localQueue: { size: 500, refetchDelay: { durationMs: 10 } }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
  const worker = await runWorker({
    connectionString,
    logger,
    concurrency: throughput ? 32 : concurrency,
    maxPoolSize: 10,
    noHandleSignals: true,
    taskList: { note: async (payload) => mark(payload.number) },
    ...(throughput ? { preset: { worker: batches } } : {}),
  });
  process.once("SIGTERM", async () => {
    await worker.stop();
    writeOut();
    process.exit(0);
  });
}

await run({ setUp, sending, work });
