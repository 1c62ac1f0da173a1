// What /client.js promises, in a browser: `node browser.mjs <Chromium> <URL of the page> <URL of the service>`.
// Prints "restart" when the service is to be restarted, and waits for a line.
import assert from "node:assert";

import { end, password, pause, Person, restart, shows, site } from "./person.mjs";

const claims = {
  async "a first visit asks nothing, and nobody is signed in"(person) {
    const page = await person.tab("#live");

    assert.strictEqual(await page.evaluate(() => todo.resume()), null);
    const code = await page.evaluate(() => todo.tasks.list().catch(({ status, code }) => `${status} ${code}`));
    assert.strictEqual(code, "401 not_authenticated");
    await shows(page, [], { state: "signed_out", waiting: 0 });
    await page.evaluate(() => list.create({ title: "Lost" }));
    assert.deepStrictEqual(await page.evaluate(() => refused.map(({ status, task }) => [status, task.title])), [[401, "Lost"]]);
    assert.deepStrictEqual(person.requests, []);
  },

  async "the page of the documentation keeps a list"(person) {
    const answers = [person.email, password];
    const pages = [await person.context.newPage(), await person.context.newPage()];
    const reads = (text) => pages.map((page) => page.waitForFunction((text) => document.querySelector("pre").textContent === text, text));
    for (const page of pages) {
      page.on("pageerror", (error) => person.complaints.push(String(error)));
      page.on("dialog", (dialog) => dialog.accept(answers.shift()));
      await page.goto(`${site}/ten.html`);
      await page.waitForFunction(() => document.querySelector("pre").textContent === "live");
    }
    await pages[1].fill("[name=title]", "Milk");
    await pages[1].press("[name=title]", "Enter");
    await Promise.all(reads("live\nMilk"));
  },

  async "writes show at once, and their temporary ids stay good"(person) {
    const page = await person.start();
    person.proxy.close();

    const id = await page.evaluate(async () => (await list.create({ title: "Milk", tags: ["home"] })).id);
    assert(id < 0);
    await page.evaluate(async (id) => {
      await list.complete(id);
      await list.update(id, { priority: "high" });
      await list.create({ title: "Boat" });
    }, id);
    await shows(page, ["Boat", "Milk (done)"], { state: "offline", waiting: 4 });
    person.proxy.open();
    await shows(page, ["Boat", "Milk (done)"]);
    assert(await page.evaluate((id) => now().tasks.some((task) => task.id === now().ids.get(id)), id));
    await page.evaluate((id) => list.complete(id), id);
    await shows(page, ["Boat", "Milk"]);
    await page.evaluate((id) => todo.tasks.update(id, { title: "Oat milk" }), id);
    await shows(page, ["Boat", "Oat milk"]);
    const task = await page.evaluate((id) => todo.tasks.get(id), id);
    assert.deepStrictEqual([task.priority, task.tags[0].name, task.id > 0], ["high", "home", true]);
    await page.evaluate((id) => list.remove(id), id);
    await shows(page, ["Boat"]);
    assert.deepStrictEqual(await person.stored(), ["Boat"]);
    assert.deepStrictEqual(await page.evaluate(() => refused), []);
  },

  async "a page shows its list before the network answers, and keeps its writes over a reload"(person) {
    const page = await person.start();
    await page.evaluate(() => list.create({ title: "Milk" }));
    await shows(page, ["Milk"]);
    person.proxy.close();
    await page.evaluate(async () => {
      const { id } = await list.create({ title: "Boat" });
      await list.complete(id);
      await list.remove(now().tasks.find(({ title }) => title === "Milk").id);
      await list.create({ title: "Car" });
    });
    person.proxy.hold();
    await page.close();

    const again = await person.tab("#live");
    await shows(again, ["Car", "Boat (done)"], { state: "connecting", waiting: 4 });
    assert.strictEqual(await again.evaluate(() => todo.user.email), person.email);
    person.proxy.open();
    await shows(again, ["Car", "Boat (done)"]);
    assert.deepStrictEqual(await person.stored(), ["Car", "Boat (done)"]);
    const sent = person.requests.filter((request) => !/auth|changes|events/.test(request));
    assert.deepStrictEqual(sent.map((request) => request.replace(/\d+$/, "")).slice(-4), [
      "POST /api/tasks", "PATCH /api/tasks/", "DELETE /api/tasks/", "POST /api/tasks",
    ]);
  },

  async "what was done without an answer is not done twice, and not shown twice"(person) {
    const page = await person.start();
    person.proxy.lost = 3;
    await page.evaluate(() => list.create({ title: "Milk" }));
    await shows(page, ["Milk"]);
    assert.strictEqual(person.proxy.lost, 0);
    person.proxy.lost = 3;
    await page.evaluate(() => todo.tasks.create({ title: "Boat" }));
    await shows(page, ["Boat", "Milk"]);

    assert.strictEqual(person.proxy.lost, 0);
    assert.deepStrictEqual(await person.stored(), ["Boat", "Milk"]);
    assert.deepStrictEqual(await page.evaluate(() => seen.filter(({ tasks }) => tasks.length > new Set(tasks.map(({ title }) => title)).size)), []);
  },

  async "what is refused for good is undone and told"(person) {
    const page = await person.start();
    await page.evaluate(() => list.create({ title: "Milk" }));
    await shows(page, ["Milk"]);
    await page.evaluate(async () => {
      list.update(now().tasks[0].id, { title: " " });
      const { id } = await list.create({ title: "x".repeat(201) });
      list.complete(id);
      list.remove(12345);
      list.update(12345, { title: "Typed" });
    });
    await page.waitForFunction(() => refused.length === 3);

    await shows(page, ["Milk"]);
    await pause(300);
    const told = await page.evaluate(() => refused.map(({ status, code, errors, task }) => [status, code, errors.length, task?.title]));
    assert.deepStrictEqual(told, [
      [422, "validation_error", 1, " "],
      [422, "validation_error", 1, "x".repeat(201)],
      [404, "task_not_found", 0, "Typed"],
    ]);
  },

  async "what a proxy says, or a service in trouble, undoes nothing"(person) {
    const page = await person.start();
    const answers = [[502, "text/html", "<h1>Bad gateway</h1>"], [404, "text/html", "<h1>Not here</h1>"], [200, "text/html", "Sign in to the airport's WLAN"],
      [503, "application/problem+json", '{"code": "unavailable"}'], [429, "application/problem+json", '{"code": "rate_limited"}']];
    await person.context.route(/api.tasks[?]?$/, (route) => {
      const [status, contentType, body] = answers.pop() ?? [];
      const headers = { "Access-Control-Allow-Origin": site, "Access-Control-Allow-Credentials": "true", "Retry-After": "7", "Access-Control-Expose-Headers": "Retry-After" };
      return status ? route.fulfill({ status, contentType, body, headers }) : route.continue();
    });
    const error = await page.evaluate(() => todo.tasks.list().catch((error) => ({ ...error, message: error.message })));
    assert.deepStrictEqual([error.status, error.code, error.retryAfter], [429, "rate_limited", 7]);
    await page.evaluate(() => list.create({ title: "Milk" }));
    await shows(page, ["Milk"]);

    assert.strictEqual(answers.length, 0);
    assert.deepStrictEqual(await person.stored(), ["Milk"]);
  },

  async "two tabs share one stream, and a tab that closes is succeeded"(person) {
    const first = await person.start();
    const [second, third] = [await person.tab("#live"), await person.tab("#live")];
    for (const page of [second, third]) await shows(page, []);
    const { id } = await second.evaluate(() => list.create({ title: "Milk" }));
    for (const page of [first, second, third]) await shows(page, ["Milk"]);
    await third.evaluate((id) => list.complete(id), id);
    for (const page of [first, second, third]) await shows(page, ["Milk (done)"]);
    assert.strictEqual(person.asked("GET /api/tasks/events"), 1);

    await first.close();
    await second.evaluate(() => list.create({ title: "Boat" }));
    for (const page of [second, third]) await shows(page, ["Boat", "Milk (done)"]);
    await person.hasAsked("GET /api/tasks/events", 2);
    await second.close();
    await third.evaluate(() => list.create({ title: "Car" }));
    await shows(third, ["Car", "Boat", "Milk (done)"]);
    assert.deepStrictEqual(await person.stored(), ["Car", "Boat", "Milk (done)"]);
    await person.hasAsked("GET /api/tasks/events", 3);
    assert.strictEqual(person.asked("POST /api/tasks"), 3);
  },

  async "a change in one tab shows in another at once"(person) {
    const first = await person.start();
    const second = await person.tab("#live");
    await shows(second, []);
    const times = [];
    for (let number = 0; number < 11; number++) {
      const began = await first.evaluate((title) => (list.create({ title }), Date.now()), `${number}`);
      await second.waitForFunction((title) => now().tasks.some((task) => task.title === title), `${number}`);
      times.push((await second.evaluate((title) => seen.find(({ tasks }) => tasks[0]?.title === title).at, `${number}`)) - began);
    }

    assert(times.sort((a, b) => a - b)[5] < 200, times.join());
  },

  async "calls and tabs that meet an expired token share a new one"(person) {
    const first = await person.start();
    const second = await person.tab("#live");
    await second.evaluate(() => todo.resume());
    await shows(second, []);
    const dead = new Set();
    let newest;
    await person.context.route(/api.tasks/, (route) => {
      const headers = route.request().headers();
      newest = headers.authorization;
      return route.continue({ headers: dead.has(newest) ? { ...headers, authorization: "Bearer a.b.c" } : headers });
    });
    await first.evaluate(() => todo.tasks.list());
    dead.add(newest);
    const refreshed = person.asked("POST /api/v1/auth/refresh");
    person.proxy.cut();
    const calls = [first, second].flatMap((page) => Array(5).fill(page.evaluate(() => todo.tasks.list())));
    assert.deepStrictEqual(await Promise.all(calls), Array(10).fill([]));
    await second.evaluate(() => list.create({ title: "Milk" }));
    for (const page of [first, second]) await shows(page, ["Milk"]);

    assert.strictEqual(person.asked("POST /api/v1/auth/refresh") - refreshed, 1);
  },

  async "a lost network, a sleep and a restart leave nothing out"(person) {
    const page = await person.start();
    await person.stored();
    await person.context.setOffline(true);
    await shows(page, [], { state: "offline", waiting: 0 });
    await person.ask("POST", "/api/tasks", { title: "Milk" });
    await page.evaluate(() => list.create({ title: "Boat" }));
    await shows(page, ["Boat"], { state: "offline", waiting: 1 });
    await person.context.setOffline(false);
    await shows(page, ["Boat", "Milk"]);

    await pause(500); // until the last event has arrived
    person.proxy.kill();
    const { id } = await person.ask("POST", "/api/tasks", { title: "Car" });
    await page.evaluate(() => {
      const clock = Date.now;
      Date.now = () => clock() + 60_000;
    });
    await shows(page, ["Car", "Boat", "Milk"]);

    await person.ask("DELETE", `/api/tasks/${id}`);
    await shows(page, ["Boat", "Milk"]);
    const restarted = restart();
    await page.evaluate(() => list.create({ title: "Bike" }));
    await restarted;
    await shows(page, ["Bike", "Boat", "Milk"]);
    assert.deepStrictEqual(await person.stored(), ["Bike", "Boat", "Milk"]);
  },

  async "a service whose database was restored starts the copy afresh"(person) {
    const page = await person.start();
    await page.evaluate(() => list.create({ title: "Milk" }));
    await shows(page, ["Milk"]);
    await page.evaluate(async () => {
      list.close();
      const done = (request) => new Promise((resolve) => (request.onsuccess = () => resolve(request.result)));
      const [{ name }] = await indexedDB.databases();
      const disk = await done(indexedDB.open(name));
      const kept = disk.transaction("copy", "readwrite").objectStore("copy");
      await done(kept.put({ reached: 1000 }, 0));
      await done(kept.put({ ...(await done(kept.get(now().tasks[0].id))), id: 999, title: "Gone", rev: 999 }, 999));
      disk.close();
    });
    await page.close();

    await shows(await person.tab("#live"), ["Milk"]);
  },

  async "signing out erases the copy, in all tabs, and another user sees nothing of it"(person) {
    const page = await person.start();
    const other = await person.tab("#live");
    await page.evaluate(() => list.create({ title: "Milk" }));
    await shows(other, ["Milk"]);
    await page.evaluate(() => todo.signOut());

    for (const tab of [page, other]) {
      await shows(tab, [], { state: "signed_out", waiting: 0 });
      assert.deepStrictEqual(await tab.evaluate(async () => [todo.user, await indexedDB.databases()]), [null, []]);
    }
    const asked = person.requests.length;
    assert.strictEqual(await (await person.tab()).evaluate(() => todo.resume()), null);
    assert.strictEqual(person.requests.length, asked);

    await page.evaluate((who) => todo.signUp(who), { email: `2.${person.email}`, password });
    await page.evaluate(() => list.create({ title: "Hers" }));
    for (const tab of [page, other]) await shows(tab, ["Hers"]);
    await other.evaluate((who) => todo.signIn(who), { email: person.email, password });
    for (const tab of [page, other]) await shows(tab, ["Milk"]);
    const isLeak = await page.evaluate(() => seen.some(({ tasks }) => tasks.some(({ title }) => title === "Hers") && tasks.some(({ title }) => title === "Milk")));
    assert.strictEqual(isLeak, false);
    await other.evaluate((who) => todo.signIn(who), { email: `2.${person.email}`, password });
    for (const tab of [page, other]) await shows(tab, ["Hers"]);
  },

  async "a session that ended elsewhere signs out, and keeps what waits for its user"(person) {
    const page = await person.start();
    person.proxy.close();
    await page.evaluate(() => list.create({ title: "Milk" }));
    await person.stored();
    await person.ask("POST", "/api/v1/auth/logout?everywhere=true");
    person.proxy.open();

    await shows(page, [], { state: "signed_out", waiting: 0 });
    assert.strictEqual(await (await person.tab()).evaluate(() => todo.resume()), null);
    await page.evaluate((who) => todo.signIn(who), { email: person.email, password });
    await shows(page, ["Milk"]);
  },

  async "while the service is out of reach, whoever was signed in still is"(person) {
    await person.start();
    person.proxy.close();

    const page = await person.tab();
    assert.strictEqual((await page.evaluate(() => todo.resume())).email, person.email);
  },

  async "without storage, each tab keeps a copy of its own"(person) {
    const page = await person.start({ storage: false });
    const other = await person.tab();
    await other.evaluate(() => todo.resume().then(() => keep({ storage: false })));
    await page.evaluate(() => list.create({ title: "Milk" }));

    for (const tab of [page, other]) await shows(tab, ["Milk"]);
    assert.deepStrictEqual(await page.evaluate(() => indexedDB.databases()), []);
  },

  async "an update that meets a newer task gives both"(person) {
    const page = await person.start();
    const [mine, theirs] = await page.evaluate(async () => {
      const { id, rev } = await todo.tasks.create({ title: "Milk" });
      await todo.tasks.update(id, { title: "Oat milk" });
      const error = await todo.tasks.update(id, { title: "Soy milk" }, { rev }).catch((error) => error);
      return [error.status, error.current.title];
    });

    assert.deepStrictEqual([mine, theirs], [412, "Oat milk"]);
  },
};

/** Check a claim, by somebody new. */
async function check([claim, body]) {
  const began = Date.now();
  const person = await Person.meet();
  try {
    await body(person);
    assert.deepStrictEqual(person.complaints, []);
  } catch (error) {
    console.log(`${claim}: ${error.stack}\n${[...person.requests.slice(-20), ...person.complaints].join("\n")}`);
    process.exitCode = 1;
  }
  await person.context.close();
  person.proxy.end();
  if (process.env.TIMES) console.log(`${Date.now() - began} ms: ${claim}`);
}

const all = Object.entries(claims).filter(([claim]) => claim.includes(process.argv[5] ?? ""));
const alone = all.filter(([claim]) => claim.includes("restart"));
const together = all.filter((claim) => !alone.includes(claim));
await Promise.all(Array.from({ length: 3 }, async () => {
  while (together.length) await check(together.shift());
}));
for (const claim of alone) await check(claim);
await end();
