// What /client.js promises, in Node: `node node.mjs <client.js> <URL of the service> <token> <other> <fresh>`.
// The token's user, who has 1200 tasks, is also that of the fresh one; the other one is another user's.
import assert from "node:assert";

import { Proxy } from "./proxy.mjs";

const [script, service, token, other, fresh] = process.argv.slice(2);
const { TodoClient, TodoError } = await import(script);
const password = "canary horse battery";
const code = (call) => call.then(() => "no error", (error) => `${error.status} ${error.code}`);

/** Call until it is so. */
async function until(condition) {
  for (const end = Date.now() + 10_000; !condition(); await new Promise((resolve) => setTimeout(resolve, 10)))
    assert(Date.now() < end, String(condition));
}

async function accounts() {
  const todo = new TodoClient(`${service}/`);
  assert.strictEqual(await todo.resume(), null);
  assert.strictEqual(await code(todo.tasks.list()), "401 not_authenticated");
  const who = { email: `node.${process.pid}@example.com`, password, name: "Node" };
  assert.strictEqual(await code(todo.signUp({ ...who, password: "short" })), "422 validation_error");
  assert.strictEqual((await todo.signUp(who)).name, "Node");
  assert.strictEqual(todo.user.email, who.email);
  assert.strictEqual(await code(todo.signUp(who)), "409 email_taken");
  assert.strictEqual(await code(todo.signIn({ ...who, password: "wrong horse" })), "401 invalid_credentials");
  assert.strictEqual(todo.user.email, who.email);
  await calls(todo);
  await todo.signOut({ everywhere: true });
  assert.strictEqual(todo.user, null);
  assert.strictEqual(await code(todo.tasks.list()), "401 not_authenticated");
  assert.strictEqual((await todo.signIn(who)).email, who.email);
  await todo.signOut();
}

async function calls({ tasks, tags }) {
  const milk = await tasks.create({ title: "Milk", tags: ["home"] });
  const { id } = milk;
  assert.deepStrictEqual(await tasks.get(id), milk);
  assert.strictEqual((await tasks.update(id, { due_date: "2026-12-01" }, { rev: milk.rev })).due_date, "2026-12-01");
  const error = await tasks.update(id, { title: "Soy" }, { rev: milk.rev }).catch((error) => error);
  assert(error instanceof TodoError && error instanceof Error);
  assert.deepStrictEqual([error.status, error.code, error.current.title, error.errors], [412, "precondition_failed", "Milk", []]);
  assert.strictEqual(await code(tasks.remove(id, { rev: milk.rev })), "412 precondition_failed");
  assert.strictEqual((await tasks.complete(id)).completed, true);
  assert.strictEqual((await tasks.complete(id, true)).completed, true);
  assert.strictEqual((await tasks.complete(id, false)).completed, false);
  const car = await tags.create({ name: "car", color: "#ff0000" });
  assert.strictEqual((await tasks.addTag(id, car.id)).tags.length, 2);
  assert.deepStrictEqual((await tasks.list({ tag: ["home", "car"], status: undefined })).map((task) => task.id), [id]);
  assert.strictEqual((await tasks.removeTag(id, car.id)).tags.length, 1);
  assert.strictEqual((await tags.update(car.id, { name: "cars" })).name, "cars");
  assert.deepStrictEqual((await tags.list()).map(({ name }) => name), ["cars", "home"]);
  assert.strictEqual(await tags.remove(car.id), undefined);
  assert.deepStrictEqual(await tasks.completeAll("pending", true), { updated: 1 });
  assert.deepStrictEqual(await tasks.removeAll("completed"), { deleted: 1 });
  const wrong = await tasks.list({ limit: 0 }).catch((error) => error);
  assert.deepStrictEqual([wrong.status, wrong.errors[0].parameter], [422, "limit"]);
  const boat = await tasks.create({ title: "Boat" });
  assert.strictEqual(await tasks.remove(boat.id, { rev: boat.rev }), undefined);
  assert.strictEqual(await code(tasks.get(boat.id)), "404 task_not_found");
}

async function tokens() {
  const given = ["a.b.c", token];
  let asked = 0;
  const todo = new TodoClient(service, { token: async () => given[asked++] ?? token });
  const answers = await Promise.all(Array.from({ length: 5 }, () => todo.tasks.list({ limit: 1 })));
  assert.deepStrictEqual([answers.length, asked], [5, 2]);
  assert.strictEqual((await todo.resume()).id, "pages");
  assert.strictEqual(asked, 2);

  const thrown = new Error("offline");
  const broken = new TodoClient(service, { token: () => Promise.reject(thrown) });
  assert.strictEqual(await broken.tasks.create({ title: "Milk" }).catch((error) => error), thrown);
  assert.strictEqual(await broken.resume().catch((error) => error), thrown);
  const nobody = new TodoClient(service, { token: () => null });
  assert.strictEqual(await code(nobody.tasks.list()), "401 not_authenticated");
  assert.strictEqual(await nobody.resume(), null);
  const stale = new TodoClient(service, { token: () => "a.b.c" });
  assert.strictEqual(await code(stale.tasks.list()), "401 invalid_token");

  // Who calls for one user must not write for the next.
  const refused = `${token.slice(0, token.lastIndexOf("."))}.forged`;
  const owners = [refused, other];
  const changing = new TodoClient(service, { token: () => owners.shift() });
  assert.strictEqual(await code(changing.tasks.create({ title: "Not hers" })), "401 not_authenticated");
  assert.strictEqual((await changing.resume()).id, "other");
  assert.deepStrictEqual(await changing.tasks.list(), []);
}

async function pages() {
  const todo = new TodoClient(service, { token: () => token });
  const ids = new Set();
  for await (const { id } of todo.tasks.all({ sort: "created", limit: 500 })) ids.add(id);
  assert.strictEqual(ids.size, 1200);

  const seen = [];
  const list = todo.live((copy) => seen.push(copy));
  await until(() => seen.at(-1)?.state === "live");
  const { tasks } = seen.at(-1);
  assert.strictEqual(tasks.length, 1200);
  assert.deepStrictEqual([...new Set(seen.map(({ tasks }) => tasks.length))], [0, 1200]);
  assert.deepStrictEqual(tasks.map(({ id }) => id), (await all(todo.tasks.all())).map(({ id }) => id));
  await todo.tasks.removeAll("all");
  await until(() => seen.at(-1).tasks.length === 0);
  list.close();
}

async function all(iterator) {
  const items = [];
  for await (const item of iterator) items.push(item);
  return items;
}

async function another() {
  let current = token;
  const todo = new TodoClient(service, { token: () => current });
  const seen = [];
  const list = todo.live((copy) => seen.push(copy), { storage: false });
  await until(() => seen.at(-1)?.state === "live");
  await list.create({ title: "Mine" });
  await until(() => seen.at(-1).waiting === 0 && seen.at(-1).tasks.length === 1);
  current = fresh; // the service will refuse the first one
  await todo.signOut();
  await until(() => seen.at(-1).state === "signed_out" && seen.at(-1).tasks.length === 0);
  const before = seen.length;
  assert.strictEqual(await code(todo.tasks.list()), "401 not_authenticated");
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.deepStrictEqual([todo.user, seen.slice(before)], [null, []]);
  const again = todo.live(() => {}, { storage: false });
  await until(() => seen.at(-1).state === "live" && seen.at(-1).tasks.length === 1);
  again.close();
  let arrive;
  current = new Promise((resolve) => (arrive = resolve));
  const early = new TodoClient(service, { token: () => current });
  const [late, told] = [[], early.live((copy) => late.push(copy))];
  await early.signOut().catch(() => {}); // before anybody was known
  arrive(other);
  await new Promise((resolve) => setTimeout(resolve, 500));
  assert.deepStrictEqual([early.user, late.at(-1).state], [null, "signed_out"]);
  told.close();

  await todo.signOut();
  current = other;
  await todo.resume();
  await until(() => seen.at(-1).state === "live");
  assert.deepStrictEqual(seen.at(-1).tasks, []);
  list.close();
  const number = seen.length;
  await todo.tasks.create({ title: "Hers" });
  assert.strictEqual(seen.length, number);
}

async function lost() {
  const proxy = await new Proxy(service).listen();
  const todo = new TodoClient(proxy.url, { token: () => other });
  proxy.lost = 3;
  const title = `Once ${process.pid}`;
  await todo.tasks.create({ title });
  assert.strictEqual(proxy.lost, 0);
  assert.strictEqual((await todo.tasks.list({ search: title })).length, 1);

  const seen = [];
  const list = todo.live((copy) => seen.push(copy));
  await until(() => seen.at(-1)?.state === "live");
  proxy.close();
  await list.create({ title: "Waits" });
  await until(() => seen.at(-1).state === "offline" && seen.at(-1).waiting === 1);
  proxy.open();
  await until(() => seen.at(-1).state === "live" && seen.at(-1).waiting === 0);
  assert.strictEqual(seen.at(-1).tasks.filter(({ title }) => title === "Waits").length, 1);
  list.close();

  // A machine sleeps between two attempts.
  const { setTimeout: later, Date: { now: clock } } = globalThis;
  proxy.close();
  globalThis.setTimeout = (run, ms) => {
    if (ms <= 200) Date.now = () => clock() + 60_000;
    return later(run, ms);
  };
  assert.strictEqual(await code(todo.tasks.create({ title: "Never" })), "0 no_answer");
  Object.assign(globalThis, { setTimeout: later });
  Date.now = clock;
  proxy.open();

  // Time flies, so that 30 seconds are over soon.
  const { setTimeout, Date: { now } } = globalThis;
  const began = now();
  globalThis.setTimeout = (run, ms) => setTimeout(run, ms / 50);
  Date.now = () => began + (now() - began) * 50;
  proxy.close();
  const error = await todo.tasks.create({ title: "Never" }).catch((error) => error);
  const seconds = (Date.now() - began) / 1000;
  Object.assign(globalThis, { setTimeout });
  Date.now = now;
  assert.deepStrictEqual([error.status, error.code], [0, "no_answer"]);
  assert(seconds > 24 && seconds < 40, `${seconds}`);
  proxy.end();
}

process.on("unhandledRejection", (error) => {
  console.log("unhandled", error);
  process.exitCode = 1;
});
for (const check of [accounts, tokens, pages, another, lost]) await check();
console.log("done");
process.exit(); // pauses of what was closed may still be running
