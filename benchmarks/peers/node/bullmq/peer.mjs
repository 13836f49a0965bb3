// BullMQ, which keeps or drops ended jobs as its documentation advises for many jobs.
import { FlowProducer, Queue, QueueEvents, Worker } from "bullmq";
import { Redis } from "ioredis";
import { run } from "./contract.mjs";

const connection = new Redis(process.env.PEER_URL, { maxRetriesPerRequest: null });
const dropped = { removeOnComplete: { age: 300, count: 100000 }, removeOnFail: 1000 };

async function sending() {
  const queue = new Queue("benchmark", { connection, defaultJobOptions: dropped });
  await queue.waitUntilReady();
  let events;
  const listening = async () => {
    events ??= new QueueEvents("benchmark", { connection });
    await events.waitUntilReady();
    return events;
  };
  return {
    send: (number) => queue.add("note", { number }),
    sendMany: (numbers) => queue.addBulk(numbers.map((number) => ({ name: "note", data: { number } }))),
    sendFlow: (jobs) => {
      const queueName = "benchmark";
      const children = Array.from({ length: jobs - 1 }, (_, number) => ({ name: "note", data: { number }, queueName, opts: dropped }));
      return new FlowProducer({ connection }).add({ name: "join", data: { number: jobs - 1 }, queueName, opts: dropped, children });
    },
    ask: async (number) => {
      const told = await listening();
      const job = await queue.add("note", { number });
      return job.waitUntilFinished(told, 10000);
    },
    sendAt: (number, instant) => queue.add("note", { number }, { delay: Math.max(0, Math.round(1000 * instant - Date.now())) }),
  };
}

async function work(concurrency) {
  const { mark, writeOut } = await import("./marks.mjs");
  const worker = new Worker("benchmark", async (job) => {
    if (job.name === "join") await job.getChildrenValues();
    return mark(job.data.number);
  }, { connection, concurrency });
  process.once("SIGTERM", async () => {
    await worker.close();
    writeOut();
    process.exit(0);
  });
}

await run({ sending, work });
