// What the API sends is shown as text, never as HTML: a title may contain anything.

const $ = (selector, within = document) => within.querySelector(selector);
const [signIn, app, add, list] = ["#sign-in", "#app", "#add", "#tasks"].map((id) => $(id));

let token = sessionStorage.getItem("token"); // only a pasted one: an account's stays in memory
let owner; // of the account, if one is signed in
let renewal;
let tasks = [];
let queue = Promise.resolve();
let waiting = 0;

/** Call the API. Return its answer, or throw its problem: `message` is for people, `code` for
 * programs, `status` is 0 if there was no answer. A token that has ended is renewed once. */
async function api(method, path, body, mayRenew = true) {
  const headers = { Authorization: `Bearer ${token}`, "Content-Type": "application/json" };
  const signal = AbortSignal.timeout(15_000);
  let problem = { status: 0, detail: "The service cannot be reached." };
  try {
    const response = await fetch(path, { method, headers, body: JSON.stringify(body), signal });
    const { ok, status } = response;
    if (!ok) problem = { status, detail: `The service answered ${status}.` };
    const answer = status === 204 ? null : await response.json();
    if (ok) return answer;
    problem = { ...problem, ...answer };
  } catch {
    // No answer, half of one, or one that is not JSON, perhaps a proxy's.
  }
  if (owner && mayRenew && ["token_expired", "token_revoked"].includes(problem.code)) {
    await renew();
    return api(method, path, body, false);
  }
  throw Object.assign(new Error(problem.detail), problem);
}

/** Get an access token, for email and password or for the cookie. */
async function enter(path, who) {
  const { access_token, user } = await api("POST", `api/v1/auth/${path}`, who);
  sessionStorage.removeItem("token");
  token = access_token;
  owner ??= user.id;
  if (owner === user.id) return;
  location.reload(); // somebody else signed in: drop everything of the first user's
  await new Promise(() => {});
}

/** Renew the access token. Calls made meanwhile share the answer. */
function renew() {
  renewal ??= enter("refresh").finally(() => (renewal = undefined));
  return renewal;
}

/** Run deeds one after another. If one fails, say why, and offer to retry if that may help. */
function attempt(deed) {
  waiting += 1;
  list.ariaBusy = "true";
  queue = queue.then(async () => {
    complain("");
    await deed().catch((problem) => {
      if (problem.status === 401) {
        sessionStorage.removeItem("token");
        if (signIn.hidden) show(false);
      } else render();
      const mayPass = [0, 408, 429].includes(problem.status) || problem.status >= 500;
      complain(problem.message, mayPass && deed);
    });
    waiting -= 1;
    list.ariaBusy = String(waiting > 0);
  });
}

/** Change something, then reload the list, as a second deed: if it fails, only it is retried. */
function change(note, ...request) {
  attempt(async () => {
    await api(...request).catch((problem) => {
      if (problem.code !== "task_not_found") throw problem;
      note = problem.message; // deleted elsewhere: the list will show it
    });
    refresh(note);
  });
}

function refresh(note = "") {
  attempt(async () => {
    const status = new FormData($("#filter")).get("status");
    tasks = await api("GET", `api/tasks?status=${status}`);
    const kind = status === "all" ? "" : `${status} `;
    const count = `${tasks.length} ${kind}task${tasks.length === 1 ? "" : "s"}`;
    $("#summary").textContent = `${note} ${count}`.trim();
    if (waiting === 1) render(); // otherwise the list is about to change again
    if (!app.hidden) return;
    for (const form of signIn.querySelectorAll("form")) form.reset();
    show(true);
  });
}

function render() {
  const items = tasks.map((task) => fill($(`#task-${task.id}`) ?? createItem(task.id), task));
  const focused = [...list.children].findIndex((item) => item.contains(document.activeElement));
  for (const item of [...list.children]) {
    // Keep a title that is being typed, even if its task is gone.
    if (!items.includes(item) && !item.matches(".editing")) item.remove();
  }
  items.forEach((item, index) => {
    if (list.children[index] !== item) list.insertBefore(item, list.children[index]);
  });
  if (focused < 0 || list.contains(document.activeElement)) return;
  const next = list.children[focused] ?? list.lastElementChild;
  (next ? $("input", next) : $("#summary")).focus();
}

function fill(item, { title, description, completed, priority, due_date }) {
  const { done, rename, remove } = $("form", item).elements;
  const due = due_date && new Date(due_date);
  const overdue = due && !completed && due < new Date();
  const moment = due?.toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  done.checked = completed;
  rename.ariaLabel = `Rename ${title}`;
  remove.ariaLabel = `Delete ${title}`;
  item.dataset.priority = priority;
  item.classList.toggle("overdue", Boolean(overdue));
  $(".title", item).textContent = title;
  $(".description", item).textContent = description;
  $(".priority", item).textContent = `${priority} priority`;
  $("time", item).textContent = due ? `${overdue ? "overdue since" : "due"} ${moment}` : "";
  return item;
}

function createItem(id) {
  const item = $("template").content.firstElementChild.cloneNode(true);
  const form = $("form", item);
  const { done, rename, remove, title, cancel } = form.elements;
  const path = `api/tasks/${id}`;
  const close = () => {
    const focused = item.contains(document.activeElement);
    item.classList.remove("editing");
    if (focused) rename.focus();
    render();
  };
  item.id = `task-${id}`;
  done.onchange = () => change("", "PATCH", path, { completed: done.checked });
  remove.onclick = () => change("Deleted.", "DELETE", path);
  cancel.onclick = close;
  form.onkeydown = ({ key }) => {
    if (key === "Escape" && item.matches(".editing")) close();
  };
  rename.onclick = () => {
    item.classList.add("editing");
    title.value = $(".title", item).textContent;
    title.select();
  };
  form.onsubmit = () =>
    attempt(async () => {
      const sent = title.value;
      await api("PATCH", path, { title: sent });
      if (title.value === sent) close();
      refresh("Renamed.");
    });
  return item;
}

function complain(sentence, deed) {
  const from = document.activeElement;
  const again = $("#problem button");
  $("#problem p").textContent = sentence;
  again.hidden = !deed;
  again.onclick = () => {
    from.focus();
    attempt(deed);
  };
}

function show(signedIn) {
  app.hidden = $("#sign-out").hidden = !signedIn;
  signIn.hidden = signedIn;
  (signedIn ? add.elements.title : $("input", signIn)).focus();
}

function draft() {
  const { title, priority, due } = add.elements;
  const due_date = due.value ? new Date(due.value).toISOString() : null;
  return { title: title.value, priority: priority.value, due_date };
}

document.onsubmit = (event) => event.preventDefault();

function credentials(form) {
  const [email, password] = form.elements;
  return { email: email.value, password: password.value };
}

function login(who) {
  attempt(async () => {
    await enter("login", who);
    refresh();
  });
}

$("#login").onsubmit = ({ target }) => login(credentials(target));

$("#register").onsubmit = ({ target }) =>
  attempt(async () => {
    const who = credentials(target);
    await api("POST", "api/v1/auth/register", who);
    login(who);
  });

$("#paste").onsubmit = () => {
  token = $("#token").value.trim().split(/\s+/).at(-1); // "Bearer" may stand in front
  sessionStorage.setItem("token", token);
  owner = undefined;
  refresh();
};

add.onsubmit = () =>
  attempt(async () => {
    const task = draft();
    if (!task.title) return; // Enter was pressed twice
    await api("POST", "api/tasks", task);
    if (JSON.stringify(draft()) === JSON.stringify(task)) add.reset();
    refresh("Added.");
  });

$("#sign-out").onclick = () =>
  attempt(async () => {
    await api("POST", "api/v1/auth/logout");
    sessionStorage.removeItem("token");
    location.reload();
  });
$("#filter").onchange = () => refresh();
$("#finish-all").onclick = () =>
  change("All done.", "PATCH", "api/tasks?status=pending", { completed: true });
$("#clear-completed").onclick = () => change("Cleared.", "DELETE", "api/tasks?status=completed");

attempt(async () => {
  try {
    if (!token) await renew();
    show(true);
    refresh();
  } catch (problem) {
    show(false);
    if (problem.status !== 401) throw problem; // 401: nobody has signed in yet
  }
});
