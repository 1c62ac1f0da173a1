// Uses the demo as people do, by keyboard where they can: `node demo.mjs <Chromium> <URL of the demo>`.
// Everything is found by the role and the name by which assistive technology finds it.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { chromium } from "playwright-core";

const [executablePath, site] = process.argv.slice(2);
const axe = readFileSync(new URL("node_modules/axe-core/axe.min.js", import.meta.url), "utf-8");
const browser = await chromium.launch({ executablePath, args: ["--disable-gpu", "--disable-quic"] });
const password = "canary horse battery";
const PATIENCE = 40_000; // milliseconds: the machine may have other things to do
const started = Date.now();
let people = 0;

/** Open a window, and remember what its console complains of. */
async function open(context) {
  context ??= await browser.newContext({ viewport: { width: 1000, height: 800 } });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  page.complaints = [];
  page.on("console", (message) => message.type() !== "log" && page.complaints.push(message.text()));
  page.on("pageerror", (error) => page.complaints.push(error.stack));
  await page.goto(site);
  return page;
}

const newEmail = () => `demo.${started}.${++people}@example.com`;
const button = (within, name) => within.getByRole("button", { name, exact: true });
const textbox = (within, name) => within.getByRole("textbox", { name, exact: true });
const task = (page, title) => page.getByRole("listitem").filter({ has: checkbox(page, title) });
const checkbox = (page, title) => page.getByRole("checkbox", { name: title, exact: true });
const status = (page) => page.getByRole("status");

/** Wait until something is so, and for as long as that takes the focus must be somewhere. */
async function until(page, isSo, what = isSo) {
  for (const start = Date.now(); Date.now() < start + PATIENCE; ) {
    if (await isSo()) return;
    assert(await page.evaluate(() => document.activeElement !== document.body), `no focus while waiting: ${what}`);
    await sleep(50);
  }
  assert.fail(`in vain: ${what}\n${await page.locator("body").ariaSnapshot()}\n${page.complaints.join("\n")}`);
}

const focused = (page, locator) => until(page, () => locator.evaluate((one) => one === document.activeElement));
const titles = (page) => page.getByRole("listitem").getByRole("checkbox").evaluateAll((all) => all.map((one) => one.closest("label")?.textContent));
const shows = (page, ...wanted) => until(page, async () => String(await titles(page)) === String(wanted), wanted);
const says = (page, text) => until(page, async () => (await status(page).textContent()) === text, text);

/** Look for what keeps people from using the page, as wide as it gets and as narrow. */
async function isFine(page) {
  await page.evaluate(axe);
  const before = page.viewportSize();
  for (const [width, colorScheme] of [[320, "light"], [1280, "dark"]]) {
    await page.setViewportSize({ width, height: 800 });
    await page.emulateMedia({ colorScheme, reducedMotion: "reduce" });
    const { violations } = await page.evaluate(() => axe.run());
    assert.deepStrictEqual(violations.map(({ id, nodes }) => [id, nodes.map(({ html }) => html)]), []);
  }
  await page.setViewportSize(before);
  await fits(page);
}

async function fits(page) {
  const before = page.viewportSize();
  await page.setViewportSize({ width: 320, height: 800 });
  assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "wider than the window");
  await page.setViewportSize(before);
}

async function fill(page, email, secret = password) {
  await textbox(page, "Email").fill(email);
  await page.getByLabel("Password", { exact: true }).fill(secret);
}

async function signUp(page, email = newEmail()) {
  await fill(page, email);
  await button(page, "Sign up").click();
  await focused(page, textbox(page, "New task"));
  await says(page, "live");
  return email;
}

async function add(page, ...names) {
  for (const name of names) {
    await textbox(page, "New task").fill(name);
    await page.keyboard.press("Enter");
    await checkbox(page, name).waitFor();
  }
}

/** An error must stand at a field, be said aloud, and be tied to it. */
async function isWrong(page, field, text) {
  await until(page, async () => (await field.getAttribute("aria-invalid")) === "true", text);
  const [id] = (await field.getAttribute("aria-describedby")).split(" ");
  const alert = page.locator(`[id="${id}"]`);
  assert.strictEqual(await alert.getAttribute("role"), "alert");
  assert.match(await alert.textContent(), text);
  await focused(page, field);
}

const claims = {
  async "a first visit is quiet, small and accessible"() {
    const page = await open();
    await focused(page, textbox(page, "Email"));
    await fits(page);
    const sizes = await page.evaluate(() =>
      ["navigation", "resource"].flatMap((type) => performance.getEntriesByType(type).map((one) => one.transferSize)),
    );
    const size = sizes.reduce((sum, one) => sum + one);
    assert(size > 10_000 && size < 60 * 1024, `${size} bytes`);
    assert.deepStrictEqual(page.complaints, []);
  },

  async "an error stands at its field, and nothing that was typed is lost"() {
    const page = await open();
    const [email, secret] = [textbox(page, "Email"), page.getByLabel("Password", { exact: true })];
    await button(page, "Sign up").click();
    await isWrong(page, email, /fill/);
    await email.pressSequentially("n");
    const states = await Promise.all([email, secret].map((field) => field.getAttribute("aria-invalid")));
    assert.deepStrictEqual([states, await page.getByRole("alert").count()], [[null, "true"], 1]);
    await fill(page, "nobody");
    await page.keyboard.press("Enter");
    await isWrong(page, email, /@/);
    await fill(page, "short@example.com", "short");
    await page.keyboard.press("Enter");
    await isWrong(page, secret, /8/);
    await isFine(page);
    assert.strictEqual(await email.inputValue(), "short@example.com");
    const taken = await signUp(page);

    const other = await open();
    await fill(other, taken);
    await other.keyboard.press("Enter");
    await isWrong(other, textbox(other, "Email"), /already/);
    await fill(other, taken, "wrong horse battery");
    await button(other, "Sign in").click();
    await isWrong(other, other.getByLabel("Password", { exact: true }), /wrong/);
    await fill(other, taken);
    await button(other, "Sign in").click();
    await focused(other, textbox(other, "New task"));

    await textbox(page, "New task").fill(" ");
    await page.keyboard.press("Enter");
    await isWrong(page, textbox(page, "New task"), /fill/);
    await textbox(page, "New task").fill("x".repeat(201));
    await page.keyboard.press("Enter");
    await isWrong(page, textbox(page, "New task"), /200/);
    await textbox(page, "New task").fill("refused\u200b\u0007");
    await page.keyboard.press("Enter");
    await isWrong(page, textbox(page, "New task"), /control/i);
    assert.strictEqual(await textbox(page, "New task").inputValue(), "refused\u200b\u0007");
    await add(page, "Buy milk");
    await button(page, "Edit").click();
    await textbox(page, "Title").fill("Milk\u0007");
    await page.keyboard.press("Enter");
    await isWrong(page, textbox(page, "Title"), /control/i);
    assert.strictEqual(await textbox(page, "Title").inputValue(), "Milk\u0007");
    await page.keyboard.press("Escape");
    await shows(page, "Buy milk");
  },

  async "a service that does not answer as it should leads to a sentence and a retry"() {
    const page = await open();
    const json = { "Content-Type": "application/problem+json", "Retry-After": "1" };
    const problem = (status, detail) => ({ status, headers: json, body: JSON.stringify({ status, code: "x", detail }) });
    const answers = [
      [problem(429, "Too many requests. Try again later."), /Too many requests/],
      [problem(503, "The service cannot answer right now."), /cannot answer/],
      [{ status: 502, contentType: "text/html", body: "<h1>Bad gateway</h1>" }, /502/],
      [{ status: 200, contentType: "text/html", body: "<h1>Welcome</h1>" }, /cannot be reached/],
      [null, /cannot be reached/],
    ];
    await fill(page, newEmail());
    for (const [answer, text] of answers) {
      await page.route("**/auth/register", (route) => (answer ? route.fulfill(answer) : route.abort()));
      await button(page, page.isTried ? "Try again" : "Sign up").click();
      page.isTried = true;
      await until(page, async () => text.test(await page.getByRole("alert").textContent()), text);
      await page.unroute("**/auth/register");
    }
    await button(page, "Try again").click();
    await focused(page, textbox(page, "New task"));
  },

  async "tasks are added, done, edited, searched, sorted and deleted"() {
    const page = await open();
    await signUp(page);
    await page.getByText("No tasks yet").waitFor();
    await add(page, "Buy milk", "Ask Élodie", "Write a letter");
    await focused(page, textbox(page, "New task"));
    assert.strictEqual(await textbox(page, "New task").inputValue(), "");
    await textbox(page, "New task").fill("Call home");
    await button(page, "Add").click();
    await shows(page, "Call home", "Write a letter", "Ask Élodie", "Buy milk");
    await checkbox(page, "Call home").check();

    const milk = task(page, "Buy milk");
    await button(milk, "Edit").click();
    await textbox(milk, "Description").fill("Oat");
    await milk.getByLabel("Due", { exact: true }).fill("2030-12-01");
    await page.keyboard.press("Enter");
    await milk.getByText("Dec 1, 2030").waitFor();
    await milk.getByText("Oat").waitFor();
    await focused(page, button(milk, "Edit"));
    await page.keyboard.press("Enter");
    await milk.getByLabel("Time", { exact: true }).fill("10:30");
    await textbox(milk, "Description").fill("Not this");
    await page.keyboard.press("Escape");
    await focused(page, button(milk, "Edit"));
    assert.strictEqual(await milk.getByText("Not this").count(), 0);
    await page.keyboard.press("Enter");
    assert.strictEqual(await textbox(milk, "Description").inputValue(), "Oat");
    await milk.getByLabel("Time", { exact: true }).fill("10:30");
    await textbox(milk, "Description").fill("Oat, two litres");
    await page.keyboard.press("Enter"); // in a text of several lines
    await milk.getByText("Dec 1, 2030, 10:30").waitFor();

    const letter = task(page, "Write a letter");
    await button(letter, "Edit").click();
    await letter.getByLabel("Time", { exact: true }).fill("10:30");
    await button(letter, "Save").click();
    await isWrong(page, letter.getByLabel("Due", { exact: true }), /day/);
    await letter.getByLabel("Due", { exact: true }).fill("2029-01-01");
    await letter.getByRole("combobox", { name: "Priority", exact: true }).selectOption("high");
    await button(letter, "Save").click();

    const search = page.getByRole("searchbox");
    await search.fill("ELODIE");
    await shows(page, "Ask Élodie");
    await search.fill("two litres");
    await shows(page, "Buy milk");
    await search.fill("nothing like it");
    await shows(page);
    await page.getByText("No match").waitFor();
    await search.fill("");
    const sort = page.getByRole("combobox", { name: "Sort", exact: true });
    await sort.selectOption("Due");
    await shows(page, "Write a letter", "Buy milk", "Call home", "Ask Élodie");
    await sort.selectOption("Title");
    await shows(page, "Ask Élodie", "Buy milk", "Call home", "Write a letter");
    await sort.selectOption("Priority");
    await shows(page, "Write a letter", "Call home", "Ask Élodie", "Buy milk");

    await button(task(page, "Call home"), "Delete").press("Enter");
    await focused(page, button(page, "Undo"));
    assert.strictEqual(await checkbox(page, "Call home").count(), 0);
    await page.keyboard.press("Enter");
    await shows(page, "Write a letter", "Call home", "Ask Élodie", "Buy milk");
    await focused(page, button(task(page, "Call home"), "Delete"));
    const [gone, began] = [page.waitForRequest((request) => request.method() === "DELETE"), Date.now()];
    await page.keyboard.press("Enter");
    await gone;
    assert(Date.now() - began < 12_000, `${Date.now() - began} ms`); // 8 s at most, and the machine may be busy
    await focused(page, checkbox(page, "Ask Élodie"));
    await shows(page, "Write a letter", "Ask Élodie", "Buy milk");
    assert.deepStrictEqual(page.complaints, []);
  },

  async "tags are added, filtered by and renamed"() {
    const page = await open();
    await signUp(page);
    await add(page, "Buy milk", "Call home");
    const milk = task(page, "Buy milk");
    for (const name of ["shop", "food"]) {
      await button(milk, "Add tag").click();
      await textbox(milk, "Tag").fill(name);
      await page.keyboard.press("Enter");
      await button(milk, name).waitFor();
      await focused(page, button(milk, "Add tag"));
    }
    const tags = () => milk.locator(".facts .chips").innerText();
    await until(page, async () => /food\s+shop/.test(await tags()), "they are saved, and in order");
    await button(milk, "shop").click();
    await shows(page, "Buy milk");
    assert.strictEqual(await button(milk, "shop").getAttribute("aria-pressed"), "true");
    await button(page, "Rename tag").click();
    await page.keyboard.type("Food");
    await page.keyboard.press("Enter");
    await isWrong(page, textbox(page, "New tag name"), /already/);
    await textbox(page, "New tag name").fill("market");
    await page.keyboard.press("Enter");
    await page.getByRole("searchbox").fill("MARKET");
    await shows(page, "Buy milk");
    await add(page, "Not at the market"); // what is added shows, whatever was sought
    await shows(page, "Not at the market", "Call home", "Buy milk");
    await button(milk, "Add tag").click();
    await button(milk, "Remove food").click();
    await until(page, async () => (await button(milk, "food").count()) === 0, "food is removed");
    await page.keyboard.press("Escape");
    await focused(page, button(milk, "Add tag"));

    await checkbox(page, "Call home").check();
    for (const name of ["Edit", "Add tag"]) await button(milk, name).click();
    await button(page, "Rename tag").click();
    await page.getByText("Description, due, priority").click();
    await add(page, "Sell the boat");
    await button(task(page, "Sell the boat"), "Delete").click();
    await isFine(page);
  },

  async "a change in one window is seen in another, and nothing that is typed there is lost"() {
    const one = await open();
    await signUp(one);
    const two = await open(one.context());
    await says(two, "live");
    await add(one, "Buy milk", "Call home");
    await shows(two, "Call home", "Buy milk");
    await button(task(two, "Buy milk"), "Edit").click();
    await textbox(task(two, "Buy milk"), "Description").fill("half a sen");
    await checkbox(one, "Buy milk").check();
    await button(task(one, "Call home"), "Edit").click();
    await textbox(task(one, "Call home"), "Title").fill("Call mother");
    await one.keyboard.press("Enter");
    await shows(two, "Call mother", "Buy milk");
    assert(await checkbox(two, "Buy milk").isChecked());
    assert.strictEqual(await textbox(task(two, "Buy milk"), "Description").inputValue(), "half a sen");
    await focused(two, textbox(task(two, "Buy milk"), "Description"));
    await two.keyboard.type("tence");
    await two.keyboard.press("Enter");
    await task(one, "Buy milk").getByText("half a sentence").waitFor();

    await one.route("**/api/tasks", (route) => sleep(1000).then(() => route.continue())); // a slow network
    await add(one, "Just added");
    await button(task(one, "Just added"), "Edit").press("Enter");
    await textbox(one, "Description").fill("edited ");
    await shows(two, "Just added", "Call mother", "Buy milk");
    await focused(one, textbox(one, "Description"));
    await one.keyboard.type("before it was saved");
    await one.keyboard.press("Enter");
    await focused(one, button(task(one, "Just added"), "Edit"));
    await task(two, "Just added").getByText("edited before it was saved").waitFor();
    await one.unrouteAll({ behavior: "wait" });

    await button(task(one, "Call mother"), "Delete").click();
    await checkbox(one, "Just added").focus();
    await two.evaluate(async () => {
      const { TodoClient } = await import("./client.js");
      const todo = new TodoClient(".");
      await todo.resume();
      const [newest] = await todo.tasks.list();
      await todo.tasks.remove(newest.id);
    });
    await shows(two, "Call mother", "Buy milk");
    await focused(one, button(one, "Undo"));
    await one.keyboard.press("Enter");
    await shows(one, "Call mother", "Buy milk");

    await button(one, "Sign out").click();
    await focused(one, textbox(one, "Email"));
    await two.getByRole("button", { name: "Sign up" }).waitFor();
    await signUp(one);
    await one.getByText("No tasks yet").waitFor();
    await shows(two);
  },

  async "what is typed is not lost when its task, the last one, is deleted on another device"() {
    const page = await open();
    await signUp(page);
    await add(page, "Buy milk");
    await says(page, "live");
    await button(page, "Edit").click();
    const description = textbox(page.getByRole("list", { name: "Tasks" }), "Description");
    await description.fill("Oat, two litres");
    await page.evaluate(async () => {
      const { TodoClient } = await import("./client.js");
      const todo = new TodoClient(".");
      await todo.resume();
      await todo.tasks.removeAll("all");
    });
    await page.getByText("No tasks yet").waitFor();
    await focused(page, description);
    assert.strictEqual(await description.inputValue(), "Oat, two litres");
    await page.keyboard.press("Enter");
    await page.getByRole("alert").filter({ hasText: /A change was not saved\. The task was deleted elsewhere/ }).waitFor();
    assert.strictEqual(await textbox(page, "Description").inputValue(), "Oat, two litres");
    assert(await textbox(page, "Description").isVisible());
    assert.deepStrictEqual(page.complaints.filter((text) => !text.includes("404")), []);
  },

  async "without a network it goes on, and sends what waits when it is back"() {
    const page = await open();
    await signUp(page);
    await add(page, "Before");
    await page.context().setOffline(true);
    await until(page, async () => (await status(page).textContent()) === "offline");
    await add(page, "Meanwhile");
    await checkbox(page, "Before").check();
    await says(page, "offline, 2 changes waiting");
    await isFine(page);
    const question = page.waitForEvent("dialog");
    const pressed = button(page, "Sign out").click(); // which would lose them
    await (await question).dismiss();
    await pressed;
    await page.route("**/api/**", (route) => route.abort());
    await page.context().setOffline(false);
    const tried = page.waitForRequest("**/api/**");
    await button(page, "Try again").click();
    await tried;
    await says(page, "offline, 2 changes waiting");
    await page.unroute("**/api/**");
    await says(page, "live");
    await page.reload();
    await shows(page, "Meanwhile", "Before");
    assert(await checkbox(page, "Before").isChecked());
  },

  async "what one user typed, chose or was told is not the next one's"() {
    const first = await open();
    const ada = await signUp(first);
    const second = await open(first.context());
    await says(second, "live");
    await add(first, "Buy milk", "Sell the boat");
    await button(task(first, "Buy milk"), "Delete").click();
    await first.getByRole("searchbox").fill("boat");
    await first.getByRole("combobox", { name: "Sort" }).selectOption("Title");
    await textbox(first, "New task").fill("A secret");
    await first.getByText("Description, due, priority").click();
    await textbox(first, "Description").first().fill("Another");
    await button(first, "Rename tag").waitFor({ state: "hidden" });
    await button(task(first, "Sell the boat"), "Edit").click();
    await button(second, "Sign out").click();
    await focused(second, textbox(second, "Email"));
    await fill(second, ada); // and leaves it there
    await first.bringToFront();
    await focused(first, textbox(first, "Email"));
    await signUp(first);
    await focused(second, textbox(second, "New task"));
    assert.strictEqual(await first.getByRole("searchbox").inputValue(), "");
    assert.strictEqual(await first.getByRole("combobox", { name: "Sort" }).inputValue(), "Newest");
    const typed = () => first.locator("input, textarea").evaluateAll((all) => all.map((one) => one.value).join(""));
    assert.doesNotMatch(await typed(), /secret|Another|milk|boat/);
    await sleep(8_000); // when the deletion would be sent
    for (const page of [first, second]) {
      assert.strictEqual(await page.getByRole("alert").count(), 0);
      assert.deepStrictEqual(await titles(page), []);
      await button(page, "Sign out").waitFor();
    }
    await button(first, "Sign out").click();
    await focused(second, textbox(second, "Email"));
    assert.strictEqual(await second.getByLabel("Password", { exact: true }).inputValue(), "");
    assert.deepStrictEqual([first, second].flatMap((page) => page.complaints), []);
  },

  async "what is deleted is gone although the page is left before Undo is"() {
    const page = await open();
    await signUp(page);
    await add(page, "Buy milk", "Sell the boat");
    await button(task(page, "Buy milk"), "Delete").click();
    await page.reload();
    await shows(page, "Sell the boat");
    await button(task(page, "Sell the boat"), "Delete").click();
    await page.getByRole("link", { name: "API docs" }).click();
    await page.getByText("Authorize").first().waitFor();
    await page.goBack();
    await shows(page);
  },

  async "Swagger UI fits a phone"() {
    const page = await open(await browser.newContext({ viewport: { width: 390, height: 800 } }));
    await page.getByRole("link", { name: "API docs" }).click();
    await page.getByRole("button", { name: "GET /api/tasks List" }).first().click();
    await page.getByText("Successful Response").first().waitFor();
    assert(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), "wider than the window");
    assert.deepStrictEqual(page.complaints.filter((text) => !text.includes("Password field")), []);
  },

  async "titles are text, of every script, direction and length"() {
    const page = await open();
    await signUp(page);
    const hostile = [
      "<img src=x onerror=alert(1)>",
      "مهمة مع English في الوسط",
      "\u202eright to left",
      "W".repeat(200),
      "買い物".repeat(60),
      "👨‍👩‍👧‍👦".repeat(20),
      "Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d\u034f".repeat(20),
    ];
    await add(page, ...hostile);
    await shows(page, ...hostile.toReversed());
    await button(task(page, hostile[3]), "Add tag").click();
    await textbox(page, "Tag").fill("T".repeat(50));
    await page.keyboard.press("Enter");
    await button(page, "T".repeat(50)).waitFor();
    await fits(page);
    await button(task(page, hostile[3]), "Edit").click();
    await fits(page);
    await button(task(page, hostile[3]), "Delete").click();
    await fits(page);
    assert.deepStrictEqual(page.complaints, []);
  },
};

const wanted = Object.entries(claims).filter(([name]) => name.includes(process.argv[4] ?? ""));
const failures = [];

async function check() {
  for (let next; (next = wanted.shift()); ) {
    const began = Date.now();
    await next[1]().catch((error) => failures.push(`${next[0]}: ${error.stack}`));
    if (process.env.VERBOSE) console.log(next[0], Date.now() - began, "ms");
  }
}

await Promise.all([check(), check(), check()]); // they wait more than they work
await browser.close();
for (const failure of failures) console.error(failure);
console.log("done");
