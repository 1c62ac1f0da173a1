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
const isFinal = (error) => // the service has refused the write itself
  error instanceof TodoError && !error.isOfToken && error.code !== "unknown" && ![401, 429].includes(error.status) &&
  !mayHaveRun(error);

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
    let token, renewal, tabs, hasLeft; // by `signOut`, so that nothing asks for a token before `resume` or `live`
    const ids = new Map(); // by temporary ids, those that the service gave
    const copies = new Set(); // functions that begin a copy anew, with whoever is signed in
    const real = (id) => ids.get(Number(id)) ?? Number(id);
    const nameOf = (user) => user && `${url} ${user.id}`;
    const account = (path, body) => send("POST", `/api/v1/auth/${path}`, { body, credentials: "include" });
    const inTurn = (run) => (tabs && !ask && navigator.locks ? navigator.locks.request(url, run) : run());
    if (globalThis.document) try {
      if (!ask) this.user = JSON.parse(localStorage.getItem(url)); // who signed in last
      tabs = new BroadcastChannel(url);
      tabs.onmessage = ({ data }) => (!ask || data.erased === nameOf(this.user)) && adopt(data, false);
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
      [this.user, token, hasLeft] = [user, access_token, Boolean(erased)];
      if (isOther || erased) for (const restart of copies) restart();
      if (isOurs && (!ask || erased)) tabs?.postMessage({ access_token, user, erased });
      if (tabs && !ask) try { localStorage.setItem(url, JSON.stringify(user)); } catch { localStorage.removeItem(url); }
      if (erased && globalThis.indexedDB)
        await Promise.race([done(indexedDB.deleteDatabase(erased)), pause(1000)]).catch(() => {}); // or it comes later
      return user;
    };
    const leave = async (error) => {
      if (error?.status === 401) await adopt({});
      throw error instanceof TodoError ? Object.assign(error, { isOfToken: true }) : error;
    };
    const foreign = async () => { // whose token it is keeps copies apart; only the service can tell if it is genuine
      const access_token = await ask();
      if (!access_token || hasLeft) throw nobody();
      const { user_id, sub } = await claimsOf(access_token).catch(() => ({}));
      const id = user_id ?? sub ?? (await send("GET", "/api/v1/auth/me", { token: access_token }).catch(() => ({}))).id;
      return { access_token, user: id && { id, email: null, name: null } };
    };
    const renew = async (refused) => { // the token; all calls and tabs that wait for another one share it
      const isStale = () => !token || token === refused;
      const renewed = async () => {
        if (isStale()) await adopt(await (ask ? foreign() : account("refresh"))); // or another tab was faster
        if (tabs && !ask) await pause(50); // the others hear of it before it is their turn
      };
      if (hasLeft || (!ask && !this.user)) throw nobody();
      if (isStale()) await (renewal ??= inTurn(renewed).catch(leave).finally(() => (renewal = null)));
      return token;
    };
    const call = async (method, path, init, user = this.user, refused) => { // a refused token is renewed, once
      const current = await renew(refused);
      user ??= this.user;
      if (user?.id !== this.user?.id) throw nobody(); // but somebody else, who did not ask for this
      return send(method, path, { ...init, token: current }).catch((error) => {
        if (error.status !== 401 || refused) throw error;
        return call(method, path, init, user, current);
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
      const told = send("POST", `/api/v1/auth/logout?everywhere=${everywhere}`, { token, credentials: "include" });
      const [{ reason }] = await Promise.allSettled([told, adopt({ erased: nameOf(this.user) ?? url })]);
      if (reason) throw reason;
    });
    this.resume = () => { // an account's user stays signed in while the service is out of reach
      hasLeft = false;
      return renew().catch((error) => { if (ask && error.status !== 401) throw error; }).then(() => this.user);
    };
    this.tasks = {
      list: (query) => call("GET", TASKS + search(query)),
      all: async function* (query) {
        const read = async (response) => [await response.json(), response.headers.get("Link")?.match(/\?[^>]*/)[0]];
        for (let page, at = search(query); at; yield* page) [page, at] = await call("GET", TASKS + at, { read });
      },
      get: (id) => call("GET", path(id)),
      create: (task) => {
        let { user } = this;
        const [body, headers, end] = [plain(task), { "Idempotency-Key": newKey() }, Date.now() + 30_000];
        const init = () => ({ body, headers, patience: Math.max(0, Math.min(PATIENCE, end - Date.now())) });
        const attempt = () => call("POST", TASKS, init(), (user ??= this.user));
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
      let copy, arrival;
      hasLeft = false;
      const mayCome = () => ask && !this.user && !hasLeft; // who it is, the function for tokens tells
      const link = () => ({ user: this.user, isExpected: this.user || mayCome(), nameOf, ids, real, call });
      const restart = () => { copy?.close(); copy = keepCopy(link(), onChange, options); };
      const judge = (error) => { if (error?.status === 401) throw error; };
      const arrive = () => insist(() => renew(), judge).catch(() => {});
      const write = async (...change) => {
        if (mayCome()) await (arrival ??= arrive().finally(() => (arrival = null)));
        return copy.write(...change);
      };
      restart();
      copies.add(restart);
      return {
        create: (task) => write("POST", temporaryId(), task),
        update: (id, changes) => write("PATCH", id, changes),
        complete: (id, completed) => write("PATCH", id, { completed: completed ?? !copy.find(id)?.completed }),
        remove: (id) => write("DELETE", id),
        close: () => copies.delete(restart) && copy.close(),
      };
    };
  }
}

const done = (request) => new Promise((yes, no) =>
  Object.assign(request, { onsuccess: yes, oncomplete: yes, onerror: no, onabort: no }));
async function transact(name, work) { // make a request of a copy on disk; its answer, if anything can be kept there
  if (!name) return undefined;
  try {
    let isEmpty; // at first, and when the browser was told to forget
    const opening = indexedDB.open(name);
    opening.onupgradeneeded = () => (isEmpty = opening.result.createObjectStore("copy"));
    const disk = (await done(opening)).target.result;
    disk.onversionchange = () => disk.close(); // whatever happens, it must not be in the way of who erases it
    const request = work(disk.transaction("copy", "readwrite").objectStore("copy"), isEmpty);
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
function keepCopy({ user, isExpected, nameOf, ids, real, call }, onChange, { onError, storage = true } = {}) {
  let [tasks, queue, rev, state] = [new Map(), new Map(), 0, isExpected ? "connecting" : "signed_out"];
  const name = nameOf(user);
  let [disk, tabs, stream, held] = [storage && name];
  const mine = new Set(); // the writes whose failure this tab tells
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
    for (const key of queue.keys()) clock = Math.max(clock, parseInt(key)); // also if the clock was wrong
    for (const { key, id, made } of settled) if (queue.delete(key) && made) ids.set(id, made);
    for (const write of queue.values()) write.id = real(write.id);
    ({ rev = rev, state = state } = now);
    if (!more) queueMicrotask(() => onChange({ tasks: [...view().values()], state, waiting: queue.size, ids }));
    if (mine.has(failed?.key)) queueMicrotask(() => onError?.(new TodoError(failed.error), failed.task));
  };
  const commit = async (change) => { // in all tabs, and on disk
    if (signal.aborted || !Object.keys(change).length) return;
    merge(change);
    const { changed = [], deleted = [], added = [], settled = [] } = change;
    await transact(disk, (kept, isEmpty) => {
      for (const { id } of isEmpty ? tasks.values() : changed) kept.put(tasks.get(id), id);
      for (const key of [...deleted, ...settled.map((write) => write.key)]) kept.delete(key);
      const moved = [...queue.values()].filter(({ id }) => settled.some(({ made }) => made === id));
      for (const write of isEmpty ? queue.values() : [...added, ...moved]) kept.put(write, write.key);
      return kept.put({ reached: rev }, 0);
    });
    tabs?.postMessage(change);
  };
  const loaded = transact(disk, (kept) => kept.getAll()).then((all) => {
    if (!all) tabs = disk = tabs?.close();
    const [{ reached } = {}, ...kept] = all ?? [];
    merge({ changed: kept.filter(({ title }) => title), added: kept.filter(({ method }) => method), rev: reached });
    for (const key of queue.keys()) mine.add(key);
  });
  const write = async (method, id, changes) => { // is done when it is on disk, and returns the task as it shows
    const body = plain(changes);
    if (!user) return void onError?.(nobody(), body);
    await loaded;
    const known = [...tasks.values()].flatMap(({ tags }) => tags);
    const named = (tag) => known.find(({ name }) => name === tag) ?? { id: temporaryId(), name: tag, color: null };
    if (body?.tags) body.tags = body.tags.map((tag) => (tag.name ? tag : named(tag)));
    const key = newKey();
    mine.add(key);
    const isKept = commit({ added: [{ key, method, id: real(id), body, at: new Date().toISOString() }] });
    const task = find(id);
    wake();
    return isKept.then(() => task);
  };
  const deliver = async () => { // the oldest write, and see what becomes of it
    const [{ key, method, id, body }] = queue.values();
    const [isNew, init] = [method === "POST", { body, headers: { "Idempotency-Key": key } }]; // only creates heed it
    const answer = call(method, isNew ? TASKS : `${TASKS}/${id}`, init, user);
    const [task, error] = await answer.then((task) => [task], (error) => [null, error]);
    if (error ? !isFinal(error) : !task?.id && method !== "DELETE") throw error ?? new TodoError({});
    const meant = find(id) ?? { ...body, id }; // the task as it was to be
    const isGone = error?.code === "task_not_found" && method !== "PATCH"; // as it was to be
    const lost = [...queue.values()].filter((write) => write.id === id); // with a task, its later changes
    await commit({
      settled: isNew && error ? lost : [{ key, id, made: isNew && task.id }],
      changed: task?.rev > rev ? [task] : [],
      deleted: method === "DELETE" && (isGone || !error) ? [id] : [],
      failed: error && !isGone && { key, error: { ...error, detail: error.message }, task: meant },
    });
  };
  const follow = async () => { // the changes, until their stream ends or is silent
    let heard = Date.now();
    const { signal } = (stream = new AbortController());
    const watchdog = setInterval(() => Date.now() - heard > 25_000 && stream.abort(), 1000); // comments come every 15 s
    const news = changesAfter(rev, (path, read) => call("GET", `${TASKS}/${path}`, { signal, read }, user));
    try {
      for await (const change of news) {
        heard = Date.now();
        await held; // or a task that is being created might show twice
        await commit(change);
      }
    } finally { clearInterval(watchdog); stream.abort(); }
  };
  const fail = async ({ status } = {}, tries) => {
    if (status === 422 && rev) await commit({ deleted: [...tasks.keys()], rev: 0, more: true }); // a restored database
    const now = status === 401 ? "signed_out" : tries ? "offline" : state; // the first failure may be the last
    if (now !== state) await commit({ state: now });
    if (status === 401) await woken();
  };
  const deliverAll = async () => {
    while (!signal.aborted) {
      const delivery = queue.size ? insist(deliver, null, rest, signal) : woken();
      held = queue.size && Promise.race([delivery, pause(LONGEST_PAUSE)]);
      await delivery;
    }
  };
  const lead = () => isExpected && Promise.all([deliverAll(), insist(follow, fail, rest, signal)]); // one tab does
  const hear = (change) => { merge(change); wake(); if (change.isNew && stream) tabs.postMessage({ state }); };
  if (disk && globalThis.navigator?.locks) tabs = new BroadcastChannel(name);
  if (tabs) tabs.onmessage = ({ data }) => loaded.then(() => hear(data));
  tabs?.postMessage({ isNew: true });
  loaded.then(() => (tabs ? navigator.locks.request(name, { signal }, lead) : lead())).catch(() => {}); // it is closed
  for (const event of ["online", "offline"]) globalThis.addEventListener?.(event, reconnect, { signal });
  globalThis.document?.addEventListener("visibilitychange", () => { wake(); tabs?.postMessage({}); }, { signal });
  return { write, find, close };
}
