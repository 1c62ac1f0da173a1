// A client of the Todo API without dependencies, for browsers and Node 20 or later. See docs/client.md.

const PATIENCE = 15_000; // milliseconds until a call counts as not answered
const LONG = { patience: 65_000 }; // of bulk calls and writes to tags, for which the service takes up to a minute
const LONGEST_PAUSE = 5_000; // between two attempts
const TASKS = "/api/tasks";
const BLANK = { description: null, completed: false, priority: "medium", due_date: null, tags: [], rev: 0 };
let clock = 0; // writes are sent in the order of their keys
const newKey = () => `${(clock = Math.max(clock + 1, Date.now()))}${temporaryId()}`;
const temporaryId = () => -Math.ceil(Math.random() * 2 ** 52);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const plain = (value) => value && JSON.parse(JSON.stringify(value)); // what frameworks wrap cannot be stored
const newestFirst = (a, b) => (b.created_at > a.created_at) - (b.created_at < a.created_at) || b.id - a.id;
const claimsOf = async (token) => JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
const readJSON = async (response) => (response.status === 204 ? undefined : response.json());
const pairsOf = ([name, value]) => [value ?? []].flat().map((each) => [name, each]);
const search = (query = {}) => `?${new URLSearchParams(Object.entries(query).flatMap(pairsOf))}`;

/** What went wrong: `message` is for people, `code` for programs, `status` is 0 if there was no answer. */
export class TodoError extends Error {
  constructor({ status = 0, code = "no_answer", detail, errors = [], retryAfter = null }, cause) {
    super(detail ?? "The service cannot be reached.", { cause });
    Object.assign(this, { name: "TodoError", status, code, errors, retryAfter });
  }
}
const nobody = () => new TodoError({ status: 401, code: "not_authenticated", detail: "Nobody is signed in." });
const noAnswer = (cause) => Promise.reject(new TodoError({}, cause)); // or half of one, or not the service's
const mayHaveRun = ({ status }) => status === 0 || status === 408 || status >= 500;
const isRefused = ({ status: s, code }) => s > 401 && s < 500 && s !== 408 && s !== 429 && code !== "unknown";

async function insist(attempt, judge, rest = pause, signal) { // until it works, it is over, or `judge` throws
  for (let tries = 0, began = Date.now(); !signal?.aborted; tries++, began = Date.now()) {
    try { return await attempt(); } catch (error) {
      if (Date.now() - began > 60_000) tries = 0; // it has worked for a while
      await judge?.(error, tries);
      await rest(Math.min(LONGEST_PAUSE, 200 * 2 ** tries) * (0.5 + Math.random() / 2));
    }
  }
}

export class TodoClient {
  constructor(url, { token: ask } = {}) {
    url = new URL(url, globalThis.document?.baseURI).href.replace(/\/+$/, ""); // names locks and what is stored, too
    this.user = null;
    let token, renewal, tabs;
    const ids = new Map(); // by temporary ids, those that the service gave
    const copies = new Set(); // functions that begin a copy anew, with whoever is signed in
    const real = (id) => ids.get(Number(id)) ?? Number(id);
    const nameOf = (user) => user && `${url} ${user.id}`;
    const account = (path, body) => send("POST", `/api/v1/auth/${path}`, { body, credentials: "include" });
    const inTurn = (run) => (tabs && navigator.locks ? navigator.locks.request(url, run) : run());
    if (globalThis.document && !ask) try {
      this.user = JSON.parse(localStorage.getItem(url)); // who signed in last
      tabs = new BroadcastChannel(url);
      tabs.onmessage = ({ data }) => adopt(data, false);
    } catch {} // storage is switched off, and so are cookies
    const send = async (method, path, { token, body, headers, patience = PATIENCE, read = readJSON, ...init }) => {
      headers = { ...(token && { Authorization: `Bearer ${token}` }), ...headers };
      if (body) headers["Content-Type"] = "application/json";
      init = { signal: AbortSignal.timeout(patience), ...init, method, headers, body: body && JSON.stringify(body) };
      const response = await fetch(url + path, init).catch(noAnswer);
      if (response.ok) return read(response).catch(noAnswer);
      const [{ status }, answer] = [response, await response.json().catch(() => null)]; // perhaps a proxy's
      const problem = { code: "unknown", detail: `The service answered ${status}.`, ...answer, status };
      throw new TodoError({ ...problem, retryAfter: Number(response.headers.get("Retry-After")) || null });
    };
    const adopt = async ({ access_token, user = null, erased }, isOurs = true) => { // who is signed in, in all tabs
      const isOther = user?.id !== this.user?.id;
      [this.user, token] = [user, access_token];
      if (tabs) localStorage.setItem(url, JSON.stringify(user));
      if (isOurs) tabs?.postMessage({ access_token, user, erased });
      if (isOther) for (const restart of copies) restart();
      if (erased && globalThis.indexedDB) await done(indexedDB.deleteDatabase(erased)).catch(() => {});
      return user;
    };
    const leave = async (error) => { if (error.status === 401) await adopt({}); throw error; };
    const foreign = async () => { // whose token it is keeps copies apart; only the service can tell if it is genuine
      const access_token = await ask();
      if (!access_token) throw nobody();
      const { user_id, sub } = await claimsOf(access_token).catch(() => ({}));
      const id = user_id ?? sub ?? (await send("GET", "/api/v1/auth/me", { token: access_token }).catch(() => ({}))).id;
      return { access_token, user: id && { id, email: null, name: null } };
    };
    const renew = async (refused) => { // the token; all calls and tabs that wait for another one share it
      const isStale = () => !token || token === refused;
      const renewed = async () => {
        if (isStale()) await adopt(await (ask ? foreign() : account("refresh"))); // or another tab was faster
        if (tabs) await pause(50); // the others hear of it before it is their turn
      };
      if (!ask && !this.user) throw nobody();
      if (isStale()) await (renewal ??= inTurn(renewed).catch(leave).finally(() => (renewal = null)));
      return token;
    };
    const call = async (method, path, init, refused) => { // a token that is refused is renewed, once
      const [user, current] = [this.user, await renew(refused)];
      if (user && user.id !== this.user?.id) throw nobody(); // but somebody else, who did not ask for this
      return send(method, path, { ...init, token: current }).catch((error) => {
        if (error.status !== 401 || refused) throw error;
        return call(method, path, init, current);
      });
    };
    const path = (id) => `${TASKS}/${real(id)}`;
    const guarded = (method, id, rev, body) =>
      call(method, path(id), { body, headers: rev && { "If-Match": `"${rev}"` } }).catch(async (error) => {
        if (error.status === 412) error.current = await call("GET", path(id)).catch(() => null);
        throw error;
      });
    this.signIn = ({ email, password }) => inTurn(async () => adopt(await account("login", { email, password })));
    this.signUp = ({ name, ...who }) => account("register", { name, ...who }).then(() => this.signIn(who));
    this.signOut = ({ everywhere = false } = {}) => inTurn(async () => {
      const init = { token, credentials: "include" };
      await adopt({ erased: nameOf(this.user) });
      await send("POST", `/api/v1/auth/logout?everywhere=${everywhere}`, init);
    });
    this.resume = () => // an account's user stays signed in while the service is out of reach
      renew().catch((error) => { if (ask && error.status !== 401) throw error; }).then(() => this.user);
    this.tasks = {
      list: (query) => call("GET", TASKS + search(query)),
      all: async function* (query) {
        const read = async (response) => [await response.json(), response.headers.get("Link")?.match(/\?[^>]*/)[0]];
        for (let page, at = search(query); at; yield* page) [page, at] = await call("GET", TASKS + at, { read });
      },
      get: (id) => call("GET", path(id)),
      create: (task) => {
        const [body, headers, end] = [plain(task), { "Idempotency-Key": newKey() }, Date.now() + 30_000];
        const attempt = () => call("POST", TASKS, { body, headers, patience: Math.min(PATIENCE, end - Date.now()) });
        return insist(attempt, (error) => { if (!mayHaveRun(error) || Date.now() + LONGEST_PAUSE > end) throw error; });
      },
      update: (id, changes, { rev } = {}) => guarded("PATCH", id, rev, changes),
      complete: (id, completed) => call("PATCH", `${path(id)}/complete`, { body: { completed } }),
      remove: (id, { rev } = {}) => guarded("DELETE", id, rev),
      completeAll: (status, completed) => call("PATCH", TASKS + search({ status }), { body: { completed }, ...LONG }),
      removeAll: (status) => call("DELETE", TASKS + search({ status }), LONG),
      addTag: (id, tagId) => call("PUT", `${path(id)}/tags/${tagId}`),
      removeTag: (id, tagId) => call("DELETE", `${path(id)}/tags/${tagId}`),
    };
    this.tags = {
      list: () => call("GET", "/api/tags"),
      create: (tag) => call("POST", "/api/tags", { body: tag, ...LONG }),
      update: (id, changes) => call("PATCH", `/api/tags/${id}`, { body: changes, ...LONG }),
      remove: (id) => call("DELETE", `/api/tags/${id}`, LONG),
    };
    this.live = (onChange, options) => {
      let copy;
      const link = () => ({ user: this.user, name: nameOf(this.user), ask, ids, real, call });
      const restart = () => { copy?.close(); copy = keepCopy(link(), onChange, options); };
      restart();
      copies.add(restart);
      return {
        create: (task) => copy.write("POST", temporaryId(), task),
        update: (id, changes) => copy.write("PATCH", id, changes),
        complete: (id, completed) => copy.write("PATCH", id, { completed: completed ?? !copy.find(id)?.completed }),
        remove: (id) => copy.write("DELETE", id),
        close: () => copies.delete(restart) && copy.close(),
      };
    };
  }
}

const done = (request) => new Promise((resolve, reject) =>
  Object.assign(request, { onsuccess: resolve, oncomplete: resolve, onerror: reject, onabort: reject }));
async function transact(name, work) { // make a request of a copy on disk; its answer, if anything can be kept there
  if (!name) return undefined;
  try {
    const opening = indexedDB.open(name);
    opening.onupgradeneeded = () => opening.result.createObjectStore("copy");
    const disk = (await done(opening)).target.result;
    const request = work(disk.transaction("copy", "readwrite").objectStore("copy"));
    await done(request.transaction).finally(() => disk.close());
    return request.result;
  } catch {} // in Node, in some private windows, on a full disk
}

async function* changesAfter(rev, get) { // in pages, and then as Server-Sent Events, by the parts that arrive
  let page = { rev, more: true };
  for (; page.more; yield page) page = await get(`changes?since=${page.rev}`);
  const body = await get(`events?since=${page.rev}`, async (response) => response.body);
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "", part; !(part = await reader.read()).done; ) {
    const [change, events] = [{}, (text + part.value).split("\n\n")];
    text = events.pop();
    for (const event of events) {
      const { event: name, data, id } = Object.fromEntries(event.split("\n").map((line) => line.split(/: ?(.*)/s)));
      if (name === "ready") change.state = "live";
      if (name === "task") (change.changed ??= []).push(JSON.parse(data));
      if (name === "deleted") (change.deleted ??= []).push(JSON.parse(data).id);
      if (id) change.rev = Number(id);
    }
    yield change;
  }
  throw new TodoError({}); // it has ended
}

/** Keep the tasks of whoever is signed in, and in `queue`, by their keys, the writes that are not acknowledged. */
function keepCopy({ user, name, ask, ids, real, call }, onChange, { onError, storage = true } = {}) {
  let [tasks, queue, rev, state] = [new Map(), new Map(), 0, user || ask ? "connecting" : "signed_out"];
  let [disk, tabs, stream, held] = [user && storage && name];
  const closed = new AbortController(), { signal } = closed, bell = new EventTarget();
  const woken = async () => signal.aborted || new Promise((end) => bell.addEventListener("ring", end, { once: true }));
  const wake = () => bell.dispatchEvent(new Event("ring"));
  const rest = (ms) => Promise.race([woken(), pause(ms)]);
  const reconnect = () => { stream?.abort(); wake(); };
  const close = () => { onChange = () => {}; closed.abort(); tabs = tabs?.close(); reconnect(); };
  const find = (id) => view().get(real(id));
  const view = () => { // the tasks as they will be when all writes are acknowledged, newest first
    if (state === "signed_out") return new Map();
    const asTask = ({ id, body, at }) => ({ ...BLANK, user_id: user.id, created_at: at, updated_at: at, ...body, id });
    const made = [...queue.values()].filter(({ method }) => method === "POST").reverse().map(asTask);
    const shown = new Map([...made, ...[...tasks.values()].sort(newestFirst)].map((task) => [task.id, task]));
    for (const { method, id, body } of queue.values())
      if (method === "DELETE") shown.delete(id);
      else if (method === "PATCH" && shown.has(id)) shown.set(id, { ...shown.get(id), ...body, id });
    return shown;
  };
  const merge = ({ changed = [], deleted = [], added = [], settled = [], failed, more, ...now }) => { // in this tab
    for (const task of changed) if (!(tasks.get(task.id)?.rev > task.rev)) tasks.set(task.id, task);
    for (const id of deleted) tasks.delete(id);
    for (const write of added) if (!queue.has(write.key)) queue.set(write.key, write);
    for (const { key, id, made } of settled) if (queue.delete(key) && made) ids.set(id, made);
    for (const write of queue.values()) write.id = real(write.id);
    ({ rev = rev, state = state } = now);
    if (!more) queueMicrotask(() => onChange({ tasks: [...view().values()], state, waiting: queue.size, ids }));
    if (failed) queueMicrotask(() => onError?.(new TodoError(failed.error), failed.task));
  };
  const commit = async (change) => { // in all tabs, and on disk
    if (signal.aborted || !Object.keys(change).length) return;
    merge(change);
    const { changed = [], deleted = [], added = [], settled = [] } = change;
    await transact(disk, (kept) => {
      for (const { id } of changed) kept.put(tasks.get(id), id);
      for (const key of [...deleted, ...settled.map((write) => write.key)]) kept.delete(key);
      const moved = [...queue.values()].filter(({ id }) => settled.some(({ made }) => made === id));
      for (const write of [...added, ...moved]) kept.put(write, write.key);
      return kept.put({ reached: rev }, 0);
    });
    tabs?.postMessage(change);
  };
  const loaded = transact(disk, (kept) => kept.getAll()).then((all) => {
    if (!all) tabs = disk = tabs?.close();
    const [{ reached } = {}, ...kept] = all ?? [];
    merge({ changed: kept.filter(({ title }) => title), added: kept.filter(({ method }) => method), rev: reached });
  });
  const write = async (method, id, changes) => { // is done when it is on disk, and returns the task as it shows
    const body = plain(changes);
    if (!user) return void onError?.(nobody(), body);
    await loaded;
    const known = [...tasks.values()].flatMap(({ tags }) => tags);
    const named = (tag) => known.find(({ name }) => name === tag) ?? { id: temporaryId(), name: tag, color: null };
    if (body?.tags) body.tags = body.tags.map((tag) => (tag.name ? tag : named(tag)));
    const isKept = commit({ added: [{ key: newKey(), method, id: real(id), body, at: new Date().toISOString() }] });
    const task = find(id);
    wake();
    return isKept.then(() => task);
  };
  const deliver = async () => { // the oldest write, and see what becomes of it
    const [{ key, method, id, body }] = queue.values();
    const [isNew, init] = [method === "POST", { body, headers: { "Idempotency-Key": key } }]; // only creates heed it
    const answer = call(method, isNew ? TASKS : `${TASKS}/${id}`, init);
    const [task, error] = await answer.then((task) => [task], (error) => [null, error]);
    if (error && !isRefused(error)) throw error;
    const isGone = error?.code === "task_not_found" && method !== "PATCH"; // as it was to be
    await commit({
      settled: isNew && error ? [...queue.values()].filter((write) => write.id === id) : [{ key, id, made: task?.id }],
      changed: task?.rev > rev ? [task] : [],
      deleted: method === "DELETE" && (isGone || !error) ? [id] : [],
      failed: error && !isGone && { error: { ...error, detail: error.message }, task: find(id) },
    });
  };
  const follow = async () => { // the changes, until their stream ends or is silent
    let heard = Date.now();
    const { signal } = (stream = new AbortController());
    const watchdog = setInterval(() => Date.now() - heard > 25_000 && stream.abort(), 1000); // comments come every 15 s
    const news = changesAfter(rev, (path, read) => call("GET", `${TASKS}/${path}`, { signal, read }));
    try {
      for await (const change of news) {
        heard = Date.now();
        await (held && Promise.race([held, pause(LONGEST_PAUSE)])); // or a task that is being created might show twice
        await commit(change);
      }
    } finally { clearInterval(watchdog); stream.abort(); }
  };
  const fail = async ({ status }, tries) => {
    if (status === 422 && rev) await commit({ deleted: [...tasks.keys()], rev: 0, more: true }); // a restored database
    const now = status === 401 ? "signed_out" : tries ? "offline" : state; // the first failure may be the last
    if (now !== state) await commit({ state: now });
    if (status === 401) await woken();
  };
  const deliverAll = async () => {
    while (!signal.aborted) await (queue.size ? (held = insist(deliver, null, rest, signal)) : woken());
  };
  const lead = () => (user || ask) && Promise.all([deliverAll(), insist(follow, fail, rest, signal)]); // one tab does
  const hear = (change) => { merge(change); wake(); if (change.isNew && stream) tabs.postMessage({ state }); };
  if (disk && globalThis.navigator?.locks) tabs = new BroadcastChannel(name);
  if (tabs) tabs.onmessage = ({ data }) => loaded.then(() => hear(data));
  tabs?.postMessage({ isNew: true });
  loaded.then(() => (tabs ? navigator.locks.request(name, { signal }, lead) : lead())).catch(() => {}); // it is closed
  for (const event of ["online", "offline"]) globalThis.addEventListener?.(event, reconnect, { signal });
  globalThis.document?.addEventListener("visibilitychange", () => { wake(); tabs?.postMessage({}); }, { signal });
  return { write, find, close };
}
