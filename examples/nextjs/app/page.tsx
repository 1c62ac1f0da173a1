"use client";

import { jwtClient } from "better-auth/client/plugins";
import { createAuthClient } from "better-auth/react";
import { useEffect, useState, type FormEvent } from "react";
import { TodoClient, type Copy, type Live } from "../client.js";

const auth = createAuthClient({ plugins: [jwtClient()] });
const todo = new TodoClient(process.env.NEXT_PUBLIC_API_URL ?? "http://localhost:8000", {
  token: async () => (await auth.token({ fetchOptions: { throw: true } })).token,
});
const EMPTY: Copy = { tasks: [], state: "connecting", waiting: 0, ids: new Map() };

export default function Page() {
  const { data: session, isPending } = auth.useSession();
  if (isPending) return null;
  return session ? <Tasks email={session.user.email} key={session.user.id} /> : <Account />;
}

function Account() {
  const [error, setError] = useState<string>();

  async function enter(event: FormEvent<HTMLFormElement>) {
    event.preventDefault();
    const { submitter } = event.nativeEvent as SubmitEvent;
    const form = new FormData(event.currentTarget, submitter);
    const { email, password, action } = Object.fromEntries(form) as Record<string, string>;
    const { error } =
      action === "sign up"
        ? await auth.signUp.email({ email, password, name: email })
        : await auth.signIn.email({ email, password });
    setError(error?.message);
  }

  return (
    <form onSubmit={enter}>
      <input name="email" type="email" aria-label="Email" placeholder="Email" autoComplete="email" autoFocus required />
      <input name="password" type="password" aria-label="Password" placeholder="Password" minLength={8} required />
      <button name="action" value="sign up">Sign up</button>
      <button name="action" value="sign in">Sign in</button>
      <p role="alert">{error}</p>
    </form>
  );
}

function Tasks({ email }: { email: string }) {
  const [live, setLive] = useState<Live>();
  const [{ tasks, state, waiting }, setCopy] = useState(EMPTY);
  const [error, setError] = useState<string>();

  useEffect(() => {
    const live = todo.live(setCopy, { onError: (error) => setError(error.message) });
    setLive(live);
    return () => live.close();
  }, []);

  function add(form: FormData) {
    live?.create({ title: String(form.get("title")) });
  }

  async function signOut() {
    if (waiting && !confirm("Sign out, and lose what waits?")) return;
    const { error } = await auth.signOut().catch(() => ({ error: { message: "No answer. Try again." } }));
    if (error) return setError(error.message);
    await todo.signOut().catch(() => {}); // the copy is erased, whether or not the service hears of it
  }

  return (
    <main>
      <header>
        {email} <button onClick={signOut}>Sign out</button>
      </header>
      <form action={add}>
        <input name="title" aria-label="New task" placeholder="New task" autoFocus required />
        <button>Add</button>
      </form>
      <ul>
        {tasks.map(({ id, title, completed }) => (
          <li key={id}>
            <label>
              <input type="checkbox" checked={completed} onChange={() => live?.complete(id, !completed)} /> {title}
            </label>
            <button onClick={() => live?.remove(id)}>Delete</button>
          </li>
        ))}
      </ul>
      <p role="status">{waiting ? `${state}, ${waiting} waiting` : state}</p>
      <p role="alert">{error}</p>
    </main>
  );
}
