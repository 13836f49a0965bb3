// The commands of a peer's program, and their answers: see ../programs/contract.py, which this follows.
import process from "node:process";

const CANNOT = 3;
const PORTION = 1000;

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const now = () => Number(process.hrtime.bigint()) / 1e9;

export async function run({ setUp, sending, work }) {
  const [command, ...given] = process.argv.slice(2);
  const numbers = given.map((text) => JSON.parse(text));
  if (command === "work") {
    await work(...numbers);
    return;
  }
  if (command === "set-up") {
    await setUp?.();
    console.log("null");
    process.exit(0);
  }
  const sender = await sending();
  try {
    console.log(JSON.stringify(await commands[command](sender, ...numbers)));
  } catch (error) {
    console.error(error?.message ?? error);
    process.exit(error?.cannot ? CANNOT : 1);
  }
  process.exit(0);
}

function ability(sender, name, what) {
  if (!sender[name]) throw Object.assign(new Error(`it cannot ${what}`), { cannot: true });
  return sender[name];
}

async function measured(jobs, send) {
  const began = now();
  const cpu = process.cpuUsage();
  await send();
  const spent = process.cpuUsage(cpu);
  return { "jobs/s": jobs / (now() - began), "CPU µs/job": (spent.user + spent.system) / jobs };
}

const commands = {
  fill: (sender, jobs) =>
    measured(jobs, async () => {
      for (let start = 0; start < jobs; start += PORTION) {
        const portion = Array.from({ length: Math.min(PORTION, jobs - start) }, (_, i) => start + i);
        await sender.sendMany(portion);
      }
    }),

  flow: async (sender, jobs) => {
    await ability(sender, "sendFlow", "await a group of jobs")(jobs);
    return null;
  },

  callers: (sender, jobs, callers) => {
    let next = 0;
    const call = async () => {
      while (next < jobs) await sender.send(next++);
    };
    return measured(jobs, () => Promise.all(Array.from({ length: callers }, call)));
  },

  "one-by-one": async (sender, jobs, every) => {
    const began = [];
    for (let number = 0; number < jobs; number++) {
      await sleep(every);
      began.push(now());
      await sender.send(number);
    }
    return began;
  },

  ask: async (sender, jobs, waiters) => {
    const ask = ability(sender, "ask", "wait for a result");
    const each = [];
    let next = 0;
    const wait = async () => {
      while (next < jobs) {
        const began = now();
        await ask(next++);
        each.push(now() - began);
      }
    };
    const began = now();
    await Promise.all(Array.from({ length: waiters }, wait));
    return { all: now() - began, each };
  },

  plan: async (sender, instants) => {
    const sendAt = ability(sender, "sendAt", "plan a job");
    await Promise.all(instants.map((instant, number) => sendAt(number, instant)));
    return null;
  },
};
