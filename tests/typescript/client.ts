// Every operation of the API, called through openapi-fetch with types generated from the document:
// `node client.js <URL>` goes through the life of an account. A new operation needs a call here.
import createClient, { type Middleware } from "openapi-fetch";

import type { components, paths } from "./schema.js";

declare const process: { argv: string[] };

type Task = components["schemas"]["TaskRead"];
type Problem = components["schemas"]["Problem"];

let token = "";
let cookie = "";
const signedIn: Middleware = {
  onRequest({ request }) {
    if (token) request.headers.set("Authorization", `Bearer ${token}`);
    if (cookie) request.headers.set("Cookie", cookie); // browsers do it by themselves
  },
  onResponse({ response }) {
    cookie = response.headers.getSetCookie().map((each) => each.split(";")[0]).join() || cookie;
  },
};

const api = createClient<paths>({ baseUrl: process.argv[2] });
api.use(signedIn);

/** Return what a call answered, or throw the sentence that the API has for people. */
async function ok<T>(call: Promise<{ data?: T; error?: Problem; response: Response }>): Promise<T> {
  const { data, error, response } = await call;
  if (error) throw new Error(`${response.url}: ${error.detail} (${error.code})`);
  return data as T;
}

function expect(right: boolean, seen: unknown) {
  if (!right) throw new Error(JSON.stringify(seen));
}

async function health() {
  await ok(api.GET("/health/live"));
  await ok(api.GET("/health/ready"));
}

async function account(email: string, password: string, work: () => Promise<void>) {
  await ok(api.POST("/api/v1/auth/register", { body: { email, password, name: "Ada" } }));
  token = (await ok(api.POST("/api/v1/auth/login", { body: { email, password } }))).access_token;
  token = (await ok(api.POST("/api/v1/auth/refresh"))).access_token;
  await ok(api.GET("/api/v1/auth/me"));
  await ok(api.PATCH("/api/v1/auth/me", { body: { name: "Ada Lovelace" } }));

  await work();

  const change = { current_password: password, new_password: `${password} 2` };
  await ok(api.POST("/api/v1/auth/password", { body: change }));
  await ok(api.POST("/api/v1/auth/logout", { params: { query: { everywhere: true } } }));
  const form = { username: email, password: change.new_password };
  const again = api.POST("/api/v1/auth/token", {
    body: form,
    headers: { "Content-Type": "application/x-www-form-urlencoded" },
  });
  token = (await ok(again)).access_token;
  await ok(api.DELETE("/api/v1/auth/me", { body: { password: change.new_password } }));
}

async function tasks() {
  const task: Task = await ok(
    api.POST("/api/tasks", { body: { title: "Buy milk", priority: "high" } }),
  );
  const params = { path: { task_id: task.id } };
  await ok(api.GET("/api/tasks/{task_id}", { params }));
  await ok(api.PUT("/api/tasks/{task_id}", { params, body: task })); // as it was read
  await ok(api.PATCH("/api/tasks/{task_id}", { params, body: { description: null } }));
  for (const due_date of ["2026-12-01", "2026-12-01T17:00:00Z"]) {
    const due = await ok(api.PATCH("/api/tasks/{task_id}", { params, body: { due_date } }));
    expect(due.due_date === due_date, due);
  }
  const never = await ok(api.PATCH("/api/tasks/{task_id}", { params, body: { due_date: null } }));
  expect(never.due_date === null, never);
  const toggled = await ok(api.PATCH("/api/tasks/{task_id}/complete", { params }));
  expect(toggled.completed, toggled);
  await ok(api.PATCH("/api/tasks/{task_id}/complete", { params, body: { completed: false } }));

  const pending = { params: { query: { status: "pending" } } } as const;
  const listed: Task[] = await ok(api.GET("/api/tasks", pending));
  expect(listed[0]?.title === task.title, listed);
  await ok(api.PATCH("/api/tasks", { ...pending, body: { completed: true } }));
  await ok(api.DELETE("/api/tasks/{task_id}", { params }));
  await ok(api.DELETE("/api/tasks", { params: { query: { status: "completed" } } }));
}

async function tags() {
  const home = await ok(api.POST("/api/tags", { body: { name: "home", color: "#22aa66" } }));
  const task = await ok(api.POST("/api/tasks", { body: { title: "Sweep", tags: ["garden"] } }));
  const params = { path: { task_id: task.id, tag_id: home.id } };
  await ok(api.PUT("/api/tasks/{task_id}/tags/{tag_id}", { params }));
  const both = await ok(
    api.GET("/api/tasks", {
      params: { query: { tag: ["home", "garden"], sort: "-priority", priority: task.priority } },
    }),
  );
  expect(both.length === 1, both);
  await ok(api.DELETE("/api/tasks/{task_id}/tags/{tag_id}", { params }));
  await ok(api.GET("/api/tags"));
  await ok(api.GET("/api/tags/{tag_id}", { params }));
  await ok(api.PUT("/api/tags/{tag_id}", { params, body: { name: "house" } }));
  await ok(api.PATCH("/api/tags/{tag_id}", { params, body: { color: null } }));
  await ok(api.DELETE("/api/tags/{tag_id}", { params }));
}

async function changes() {
  const page = await ok(
    api.GET("/api/tasks/changes", { params: { query: { since: 0 } } }),
  );
  expect(!page.more && page.deleted.length > 0, page);
  const events = await ok(api.GET("/api/tasks/events", { parseAs: "stream" }));
  await events?.cancel();
}

async function work() {
  await tasks();
  await changes();
  await tags();
}

await health();
await account("typescript@example.com", "canary horse battery", work);
console.log("done");
