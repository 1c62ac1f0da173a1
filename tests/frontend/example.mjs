// Uses an example as a person does, in two windows and on another device:
// `node example.mjs <Chromium> <URL of the page>`.
import assert from "node:assert";
import { setTimeout } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";

import { chromium } from "playwright-core";

const [executablePath, site] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--disable-gpu", "--disable-quic"] });
const account = { Email: `example.${process.pid}@example.com`, Password: "canary horse battery" };

/** Open the page in a window; the test wants no errors. */
async function open(context) {
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("console", (message) => message.type() === "error" && console.error(message.text()));
  page.on("pageerror", (error) => console.error(error));
  await page.goto(site);
  return page;
}

async function enter(page, action) {
  for (const [name, value] of Object.entries(account)) await page.getByLabel(name).fill(value);
  await page.getByRole("button", { name: action }).click();
}

async function add(page, title) {
  await page.getByRole("textbox", { name: "New task" }).fill(title);
  await page.getByRole("button", { name: "Add" }).click();
}

const focused = (page) => page.evaluate(() => document.activeElement.tagName);

/** Wait until a window shows the tasks, newest first: [title, completed]. */
async function shows(page, ...tasks) {
  await page.getByRole("status").filter({ hasText: /^live$/ }).waitFor();
  const read = () =>
    page.$$eval("label", (labels) => labels.map((label) => [label.textContent.trim(), label.control.checked]));
  for (let tries = 0; tries < 600 && !isDeepStrictEqual(await read(), tasks); tries++) await setTimeout(50);
  assert.deepStrictEqual(await read(), tasks);
}

async function use() {
  const here = await browser.newContext();
  const window = await open(here);
  await enter(window, "Sign up");
  await shows(window);
  await add(window, "Buy milk");
  await shows(window, ["Buy milk", false]);

  const second = await open(here);
  await shows(second, ["Buy milk", false]);
  const device = await open(await browser.newContext());
  await enter(device, "Sign in");
  await shows(device, ["Buy milk", false]);
  await add(device, "Sell the boat");
  await device.getByRole("checkbox", { name: "Buy milk" }).press("Space");
  for (const each of [window, second, device]) await shows(each, ["Sell the boat", false], ["Buy milk", true]);
  assert.strictEqual(await device.evaluate(() => document.activeElement.type), "checkbox");
  await setTimeout(1100); // Better Auth's tokens of one user are the same within a second, and end together
  await window.reload();
  await shows(window, ["Sell the boat", false], ["Buy milk", true]);
  await window.locator("li", { hasText: "Sell the boat" }).getByRole("button").click();
  for (const each of [window, second, device]) await shows(each, ["Buy milk", true]);
  if (site.endsWith(".html")) assert.notStrictEqual(await focused(window), "BODY");

  await window.getByRole("button", { name: "Sign out" }).click();
  for (const each of [window, second]) {
    await each.getByLabel("Email").waitFor();
    assert.strictEqual(await each.locator("li").count(), 0);
  }
  assert.notStrictEqual(await focused(window), "BODY");
  assert.deepStrictEqual(await window.evaluate(() => indexedDB.databases()), []);
  await add(device, "Call Bob");
  await shows(device, ["Call Bob", false], ["Buy milk", true]);
}

await use().finally(() => browser.close());
console.log("done");
