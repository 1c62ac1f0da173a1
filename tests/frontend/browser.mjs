// Uses the page as a person does: `node browser.mjs <Chromium> <URL of the page> <URL of the service>`.
// After each step it compares what the page shows with what the service says by its own names.
import assert from "node:assert";
import { setTimeout } from "node:timers/promises";
import { isDeepStrictEqual } from "node:util";

import { chromium } from "playwright-core";

const [executablePath, site, service] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--disable-gpu", "--disable-quic"] });
const page = await browser.newPage();
page.setDefaultTimeout(10_000);
// The test wants none of these.
page.on("console", (message) => message.type() === "error" && console.error(message.text()));
page.on("pageerror", (error) => console.error(error));

/** Read the list on the page. */
function shown() {
  return page.$$eval("li", (items) =>
    items.map((item) => ({
      title: item.querySelector("[name=title]").value,
      description: item.querySelector("i").textContent,
      completed: item.querySelector("[name=completed]").checked,
      due_date: item.querySelector("[name=due_date]").value || null,
      tags: item.querySelector("b").textContent.split(",").filter(Boolean),
    })),
  );
}

/** Ask the service. */
async function stored(query) {
  const token = await page.evaluate(() => localStorage.token);
  const headers = { Authorization: `Bearer ${token}` };
  const response = await fetch(`${service}/api/tasks?${query}`, { headers });
  return (await response.json()).map(({ title, description, completed, due_date, tags }) => {
    return { title, description, completed, due_date, tags: tags.map((tag) => tag.name) };
  });
}

/** Wait until the page shows these tasks; the service must say the same. */
async function expect(query, ...tasks) {
  for (let tries = 0; tries < 100 && !isDeepStrictEqual(await shown(), tasks); tries++)
    await setTimeout(50);
  assert.deepStrictEqual(await shown(), tasks, await page.textContent("output"));
  assert.deepStrictEqual(await stored(query), tasks);
}

async function account(action) {
  await page.fill("[name=email]", "frontend@example.com");
  await page.fill("[name=password]", "canary horse battery");
  await page.click(`text=${action}`);
  await page.waitForSelector("main:not([hidden])");
}

async function create(priority, { title, description, due_date, tags }) {
  await page.fill("#create [name=title]", title);
  await page.fill("#create [name=description]", description);
  await page.selectOption("#create [name=priority]", priority);
  await page.fill("#create [name=due_date]", due_date ?? "");
  await page.fill("#create [name=tags]", tags.join());
  await page.click("text=Add");
}

/** Change a task in the list, which is then loaded again. */
async function change(number, name, act) {
  const loaded = page.waitForResponse((response) => response.url().includes("/tasks?"));
  await act(page.locator("li").nth(number).locator(`[name=${name}]`));
  await loaded;
}

async function edit(number, name, value) {
  await change(number, name, async (input) => {
    await input.fill(value);
    await input.blur();
  });
}

async function use() {
  await page.goto(`${site}?${service}`);
  await account("Sign up");

  const milk = { title: "Milk", description: "Two litres", completed: false };
  Object.assign(milk, { due_date: "2026-12-01", tags: ["home", "shop"] });
  const boat = { title: "Boat", description: "Ask Bob", completed: false, due_date: null, tags: [] };
  await create("High", milk);
  await expect("", milk);
  await create("Low", boat);
  await expect("sort=-created", boat, milk);

  await change(1, "completed", (box) => box.click());
  milk.completed = true;
  await expect("sort=-created", boat, milk);
  await page.selectOption("[name=status]", "Completed");
  await expect("status=completed", milk);
  await page.selectOption("[name=status]", "Pending");
  await expect("status=pending", boat);
  await page.selectOption("[name=status]", "All");
  await expect("", boat, milk);
  await page.fill("[name=search]", "litre");
  await expect("search=litre", milk);
  await page.fill("[name=search]", "");
  await expect("", boat, milk);

  await edit(0, "title", (boat.title = "Sell the boat"));
  await expect("", boat, milk);
  await edit(0, "due_date", (boat.due_date = "2026-11-30"));
  await expect("", boat, milk);

  await page.selectOption("[name=sort_by]", "due_date");
  await expect("sort=-due_date", milk, boat);
  await page.selectOption("[name=order]", "asc");
  await expect("sort=due_date", boat, milk);
  await page.selectOption("[name=sort_by]", "title");
  await expect("sort=title", milk, boat);
  await page.selectOption("[name=sort_by]", "priority");
  await expect("sort=priority", boat, milk);

  await edit(0, "due_date", "");
  boat.due_date = null;
  await expect("sort=priority", boat, milk);
  await page.locator("li").nth(1).locator("text=Delete").click();
  await expect("", boat);

  await page.click("text=Sign out");
  await account("Sign in");
  await expect("", boat);
}

await use().finally(() => browser.close());
console.log("done");
