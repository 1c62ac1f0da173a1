// Somebody with a browser, for browser.mjs and campaign.mjs.
import assert from "node:assert";
import readline from "node:readline";
import { setTimeout as pause } from "node:timers/promises";

import { chromium } from "playwright-core";

import { Proxy } from "./proxy.mjs";

const [executablePath, site, service] = process.argv.slice(2);
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const browser = await chromium.launch({ executablePath, args: ["--disable-gpu", "--disable-quic"] });
const password = "canary horse battery";
let accounts = 0;

/** Somebody with a browser of their own, whose way to the service goes through `proxy`. */
class Person {
  requests = [];
  complaints = [];

  static async meet() {
    const person = new Person();
    person.proxy = await new Proxy(service).listen();
    person.context = await browser.newContext();
    person.context.on("request", (request) => {
      if (request.url().startsWith(person.proxy.url))
        person.requests.push(`${request.method()} ${request.url().slice(person.proxy.url.length)}`);
    });
    person.email = `person.${process.pid}.${++accounts}@example.com`;
    return person;
  }

  /** Open a tab. */
  async tab(hash = "") {
    const page = await this.context.newPage();
    page.setDefaultTimeout(10_000);
    page.on("pageerror", (error) => this.complaints.push(String(error)));
    page.on("console", (message) => {
      const isAnswer = message.text().startsWith("Failed to load resource"); // nobody can silence these
      if (message.type() === "error" && !isAnswer) this.complaints.push(message.text());
    });
    await page.goto(`${site}/page.html?service=${this.proxy.url}${hash}`);
    await page.waitForFunction(() => document.title === "Ready");
    return page;
  }

  /** Open a tab, sign up, and keep a list. */
  async start(options) {
    const page = await this.tab();
    await page.evaluate((who) => todo.signUp(who), { email: this.email, password });
    await page.evaluate((given) => keep(given), options);
    await shows(page, []);
    return page;
  }

  /** What the service has. */
  async stored() {
    const tasks = await this.ask("GET", "/api/tasks");
    return tasks.map(({ title, completed }) => (completed ? `${title} (done)` : title));
  }

  /** Call the service, from another device. */
  async ask(method, path, body) {
    const send = () => {
      const headers = { Authorization: `Bearer ${this.token}`, "Content-Type": "application/json" };
      return fetch(service + path, { method, headers, body: body && JSON.stringify(body) });
    };
    let response = await send();
    if (response.status === 401) {
      const who = { email: this.email, password };
      const headers = { "Content-Type": "application/json" };
      const login = await fetch(`${service}/api/v1/auth/login`, { method: "POST", headers, body: JSON.stringify(who) });
      this.token = (await login.json()).access_token;
      response = await send();
    }
    assert(response.ok, `${method} ${path}: ${response.status}`);
    return response.status === 204 ? null : response.json();
  }

  asked(start) {
    return this.requests.filter((request) => request.startsWith(start)).length;
  }

  /** Wait until the pages have asked this so many times. */
  async hasAsked(start, count, timeout = 10_000) {
    for (const end = Date.now() + timeout; Date.now() < end && this.asked(start) < count; ) await pause(20);
    assert.strictEqual(this.asked(start), count);
  }
}

const titles = (page) => page.evaluate(() => now().tasks.map((task) => (task.completed ? `${task.title} (done)` : task.title)));
const read = (page) => page.evaluate(() => ({ state: now().state, waiting: now().waiting }));

/** Wait until a page shows these tasks, in this state. */
async function shows(page, tasks, expected = { state: "live", waiting: 0 }, timeout = 10_000) {
  const seen = async () => ({ tasks: await titles(page), ...(await read(page)) });
  const wanted = { tasks, ...expected };
  for (const end = Date.now() + timeout; Date.now() < end && JSON.stringify(await seen()) !== JSON.stringify(wanted); )
    await pause(20);
  assert.deepStrictEqual(await seen(), wanted);
}

/** Have the service restarted, and return a promise of it. */
async function restart() {
  console.log("restart");
  await lines.next();
}

/** End the browser, and say that all is well unless something was printed. */
async function end() {
  await browser.close();
  process.stdin.destroy();
  if (!process.exitCode) console.log("done");
}

export { end, password, pause, Person, restart, shows, site };
