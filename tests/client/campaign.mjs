// Random use of a list in several tabs while connections are cut, tokens expire and the service restarts:
// `node campaign.mjs <Chromium> <URL of the page> <URL of the service> <seconds> <seed>`.
import assert from "node:assert";

import { end, pause, Person, restart, shows } from "./person.mjs";

const [seconds, seed] = process.argv.slice(5).map(Number);
let state = seed;
const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
const below = (number) => Math.floor(random() * number);
const any = (items) => items[below(items.length)];

const person = await Person.meet();
const tabs = [await person.start()];
let wanted = []; // newest first, as [title, done]
let elsewhere = []; // titles that another device adds
let number = 0;
const log = [];

/** Do something in a tab with a task that it shows, by whatever id it shows it under. */
async function write(tab, name, title, ...rest) {
  log.push(`${name} ${title} ${rest}`);
  return tab.evaluate(
    async ([name, title, rest]) => {
      const task = now().tasks.find((task) => task.title === title);
      if (task) await list[name](task.id, ...rest);
      return Boolean(task);
    },
    [name, title, rest],
  );
}

const deeds = {
  async create(tab) {
    const title = `task ${++number}`;
    log.push(`create ${title}`);
    await tab.evaluate((title) => list.create({ title, tags: ["home"] }), title);
    wanted.unshift([title, false]);
  },
  async call(tab) {
    const title = `call ${++number}`;
    log.push(`call ${title}`);
    const isDone = await tab.evaluate((title) => todo.tasks.create({ title }).then(() => true, ({ status }) => status), title);
    assert(isDone === true || isDone === 0 || isDone >= 500 || isDone === 429, `${isDone}`);
    elsewhere.push([title, isDone === true]);
  },
  async complete(tab) {
    const task = any(wanted);
    if (task && (await write(tab, "complete", task[0], !task[1]))) task[1] = !task[1];
  },
  async rename(tab) {
    const task = any(wanted);
    const title = `renamed ${++number}`;
    if (task && (await write(tab, "update", task[0], { title }))) task[0] = title;
  },
  async remove(tab) {
    const task = any(wanted);
    if (task && (await write(tab, "remove", task[0]))) wanted = wanted.filter((other) => other !== task);
  },
  async device() {
    const title = `device ${++number}`;
    const isDone = await person.ask("POST", "/api/tasks", { title }).then(() => true, () => false);
    elsewhere.push([title, isDone]);
  },
  async open() {
    if (tabs.length < 4) tabs.push(await person.tab("#live"));
  },
  async close() {
    if (tabs.length > 1) await tabs.splice(below(tabs.length), 1)[0].close();
  },
  async reload(tab) {
    await tab.close();
    tabs.splice(tabs.indexOf(tab), 1, await person.tab("#live"));
  },
  async cut() {
    person.proxy.cut();
  },
  async lose() {
    person.proxy.lost = 1 + below(3);
  },
  async part() {
    person.proxy.close();
    setTimeout(() => person.proxy.open(), below(3000));
  },
  async still() {
    person.proxy.hold();
    setTimeout(() => person.proxy.open(), below(3000));
  },
  async wait() {
    await pause(below(1000));
  },
};
const often = ["create", "create", "create", "complete", "rename", "remove", "wait", "wait"];

let restarts = 2;
try {
  const began = Date.now();
  while (Date.now() - began < seconds * 1000) {
    if (restarts && Date.now() - began > (3 - restarts) * (seconds / 3) * 1000) {
      restarts -= 1;
      restart();
    }
    const name = below(2) ? any(often) : any(Object.keys(deeds));
    if (name === "call" && person.proxy.isOpen === false) continue;
    await deeds[name](any(tabs));
  }
  person.proxy.open();
  const stored = async () => (await person.ask("GET", "/api/tasks")).map(({ title, completed }) => [title, completed]);
  for (const tab of tabs)
    await tab.waitForFunction(() => now().state === "live" && now().waiting === 0, null, { timeout: 30_000 });
  const found = await stored();
  const ours = found.filter(([title]) => /^(task|renamed) /.test(title));
  assert.deepStrictEqual(ours, wanted);
  const others = found.map(([title]) => title).filter((title) => /^(call|device) /.test(title));
  for (const [title, isDone] of elsewhere) {
    const times = others.filter((other) => other === title).length;
    assert(times === 1 || (times === 0 && !isDone), `${title}: ${times}`);
  }
  for (const tab of tabs) {
    await shows(tab, found.map(([title, done]) => (done ? `${title} (done)` : title)));
    const twice = await tab.evaluate(() =>
      seen.flatMap(({ tasks }) => tasks.map(({ title }) => title).filter((title, at, all) => all.indexOf(title) !== at)));
    assert.deepStrictEqual(twice, []);
    assert.deepStrictEqual(await tab.evaluate(() => refused), []);
  }
  assert.deepStrictEqual(person.complaints, []);
  console.error(`${number} writes, ${found.length} tasks, ${person.requests.length} requests`);
} catch (error) {
  for (const tab of tabs) console.log(JSON.stringify(await tab.evaluate(() => [now().state, now().waiting, now().tasks.length, seen.length, refused])));
  console.log(`seed ${seed}: ${error.stack}\n${log.slice(-40).join("\n")}\n${person.requests.slice(-30).join("\n")}`);
  process.exitCode = 1;
}
person.proxy.end();
await end();
