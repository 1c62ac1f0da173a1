// Makes the picture of the demo: `node screenshot.mjs <Chromium> <URL of the demo> <file.png>`.
import { chromium } from "playwright-core";

const [executablePath, site, path] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--disable-gpu"] });
const who = { email: `picture.${Date.now()}@example.com`, password: "canary horse battery" };
const day = (days) => new Date(Date.now() + days * 86_400_000).toISOString().slice(0, 10);

const TASKS = [
  { title: "Water the plants", completed: true, tags: ["home"] },
  { title: "Renew the passport", due_date: day(12), tags: ["errands"] },
  { title: "Book a table for Saturday", description: "Six people, outside if it is warm", tags: ["friends"] },
  { title: "Buy milk", due_date: day(1), tags: ["home", "errands"] },
  { title: "Send the slides to Élodie", priority: "high", due_date: day(0), tags: ["work"] },
];

async function window(action, width, height, colorScheme) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme, deviceScaleFactor: 1.5 });
  const page = await context.newPage();
  await page.goto(site);
  await page.fill("#email", who.email);
  await page.fill("#password", who.password);
  await page.click(`text=${action}`);
  await page.getByText("live", { exact: true }).waitFor();
  return page;
}

const wide = await window("Sign up", 760, 800, "light");
const narrow = await window("Sign in", 370, 800, "dark");
for (const { completed, ...task } of TASKS) {
  await wide.evaluate(
    async ([task, completed, who]) => {
      const { TodoClient } = await import("./client.js");
      const todo = new TodoClient(".");
      await todo.signIn(who);
      const { id } = await todo.tasks.create(task);
      if (completed) await todo.tasks.complete(id, true);
    },
    [task, completed, who],
  );
}
await narrow.getByText("Élodie").waitFor();
await narrow.getByRole("checkbox", { name: "Buy milk" }).check();
await wide.mouse.move(0, 0);
await wide.waitForTimeout(3000); // what has just changed glows for a while
const shots = [await wide.screenshot(), await narrow.screenshot()].map((shot) => shot.toString("base64"));
const picture = await browser.newPage();
await picture.setContent(`<!doctype html>
  <style>
    body { margin: 0; padding: 24px; display: flex; gap: 20px; width: max-content; background: #cfd8d3 }
    img { height: 640px; border-radius: 14px; box-shadow: 0 10px 30px #0004 }
  </style>
  ${shots.map((shot) => `<img src="data:image/png;base64,${shot}">`).join("")}`);
await picture.locator("body").screenshot({ path });
await browser.close();
