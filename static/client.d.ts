// The types of client.js. See docs/client.md.

/** A client of the Todo API, as one user. */
export class TodoClient {
  /**
   * @param url Where the service is; on a page of its own, a relative one will do.
   * @param options.token Asks another server for a token, at first and after each 401. Whatever it throws, the call
   *   throws. Without it, users have accounts of this service.
   */
  constructor(
    url: string | URL,
    options?: { token?: () => string | null | undefined | Promise<string | null | undefined> },
  );

  /** Who is signed in. */
  readonly user: Who | null;

  /** Create an account, and sign in. */
  signUp(who: { email: string; password: string; name?: string | null }): Promise<Who>;

  signIn(who: { email: string; password: string }): Promise<Who>;

  /** End the session, or all sessions of the user, and erase the copy. `token` is not asked until `resume`. */
  signOut(options?: { everywhere?: boolean }): Promise<void>;

  /** Find out who is signed in when a page is opened again. Where nobody ever was, nothing is asked. */
  resume(): Promise<Who | null>;

  readonly tasks: {
    /** List a page of tasks, newest first by default. */
    list(query?: TaskQuery): Promise<Task[]>;
    /** Go through all tasks, page by page. */
    all(query?: TaskQuery): AsyncGenerator<Task, void, undefined>;
    get(id: number): Promise<Task>;
    /** Create a task. It is tried again, and happens once, until the answer is known or 30 seconds are over. */
    create(task: NewTask): Promise<Task>;
    /** Change a task; with `rev`, only if that is its revision. Else the error's `current` is the task as it is. */
    update(id: number, changes: TaskChanges, options?: { rev?: number }): Promise<Task>;
    /** Say whether a task is done; without `completed`, toggle. */
    complete(id: number, completed?: boolean): Promise<Task>;
    remove(id: number, options?: { rev?: number }): Promise<void>;
    /** Say of all tasks of this status whether they are done. */
    completeAll(status: Status, completed: boolean): Promise<Updated>;
    removeAll(status: Status): Promise<Deleted>;
    addTag(id: number, tagId: number): Promise<Task>;
    removeTag(id: number, tagId: number): Promise<Task>;
  };

  readonly tags: {
    list(): Promise<Tag[]>;
    create(tag: NewTag): Promise<Tag>;
    update(id: number, changes: TagChanges): Promise<Tag>;
    remove(id: number): Promise<void>;
  };

  /**
   * Keep a copy of all tasks, and call `onChange` at each change.
   * @param options.onError Is told of writes that were refused for good and undone, and what their task was to be; of
   *   one that is gone or never was, what was to be written.
   * @param options.storage `false` keeps the copy in memory, for this tab alone.
   */
  live(
    onChange: (copy: Copy) => void,
    options?: {
      onError?: (error: TodoError, task?: Task | (TaskChanges & { id?: number })) => void;
      storage?: boolean;
    },
  ): Live;
}

/** What went wrong; `message` is a sentence for people. */
export class TodoError extends Error {
  /** Of the answer; 0 if there was none. */
  readonly status: number;
  /** Stable, for programs: the API's codes, `no_answer`, or `unknown` if a proxy answered. */
  readonly code: string;
  /** What is wrong with which field or parameter. */
  readonly errors: InvalidMember[];
  /** Seconds to wait before trying again. */
  readonly retryAfter: number | null;
  /** After a 412: the task as it is now; null if that could not be read. */
  readonly current?: Task | null;
}

/** Who is signed in. Of another server's token, only the id is known. */
export type Who = Pick<User, "id" | "email" | "name"> & Partial<User>;

/** The copy of all tasks, as a page shows it. */
export interface Copy {
  /** Newest first, with the writes that wait; empty while nobody is signed in. */
  tasks: Task[];
  state: "connecting" | "live" | "offline" | "signed_out";
  /** How many writes are not yet acknowledged. */
  waiting: number;
  /** By the temporary ids of new tasks, those that they have got since: for pages that keep something by id. */
  ids: ReadonlyMap<number, number>;
}

/**
 * Writes that show at once and are sent as soon as they can be. Each resolves when the write is kept, also over a
 * reload unless the disk is full; none rejects. A new task has a negative id until it is acknowledged, which all
 * methods go on to accept.
 */
export interface Live {
  create(task: NewTask): Promise<Task | undefined>;
  update(id: number, changes: TaskChanges): Promise<Task | undefined>;
  complete(id: number, completed?: boolean): Promise<Task | undefined>;
  remove(id: number): Promise<void>;
  /** Stop. What waits is sent when the copy is opened again. */
  close(): void;
}

// Below: generated from the OpenAPI document by tests/client_types.py.

/** Which tasks, in which order. */
export interface TaskQuery {
  /** Only pending, or only completed tasks. */
  status?: Status;
  /** Only tasks of this priority. */
  priority?: Priority;
  /** Only tasks with the tag of this name; if repeated, with all of them. */
  tag?: string[];
  /** Only tasks with this text in the title or the description. Case, accents and width make no difference, and there are no wildcards. */
  search?: string;
  /** A day, or a timestamp with an offset (RFC 3339). */
  due_after?: string;
  /** A day, or a timestamp with an offset (RFC 3339). */
  due_before?: string;
  /** The order; a leading `-` reverses it. Tasks without a due date come last either way, `priority` goes from low to high, and ties are ordered by id. */
  sort?: Sort;
  /** The maximum number of tasks. */
  limit?: number;
  /** Where to continue, from the `Link` of a response to the same query. */
  cursor?: string;
}

/** A task, as in every response. */
export interface Task {
  id: number;
  user_id: string;
  title: string;
  description: string | null;
  completed: boolean;
  priority: Priority;
  due_date: string | null;
  tags: Tag[];
  created_at: string;
  updated_at: string;
  /** The owner's revision that changed it. */
  rev: number;
}

/** A new task; only the title is required. */
export interface NewTask {
  title: string;
  description?: string | null;
  completed?: boolean;
  priority?: Priority;
  due_date?: string | null;
  /** Names, or tags as returned, which mean the tag with their id whatever it is called by now. Unknown names become new tags. */
  tags?: TagInput[];
}

/** Any fields of a task: omitted ones keep their value. */
export interface TaskChanges {
  title?: string;
  description?: string | null;
  completed?: boolean;
  priority?: Priority;
  due_date?: string | null;
  /** Names, or tags as returned, which mean the tag with their id whatever it is called by now. Unknown names become new tags. */
  tags?: TagInput[];
}

/** A tag, as in every response. */
export interface Tag {
  id: number;
  name: string;
  color: string | null;
}

/** A new tag; only the name is required. */
export interface NewTag {
  name: string;
  color?: string | null;
}

/** Any fields of a tag: omitted ones keep their value, null clears the color. */
export interface TagChanges {
  name?: string;
  color?: string | null;
}

export type TagInput = string | TagObject;

/** A tag of a task that is written: one of the owner's if the id is, else one of this name. */
export interface TagObject {
  id?: number;
  name: string;
  color?: string | null;
}

/** A user. `email` is null if only an external token names the user, `name` until it is set. */
export interface User {
  id: string;
  email: string | null;
  name: string | null;
  created_at: string;
}

export type Priority = "low" | "medium" | "high";

export type Status = "completed" | "pending" | "all";

export type Sort = "created" | "updated" | "title" | "due_date" | "priority" | "-created" | "-updated" | "-title" | "-due_date" | "-priority";

/** How many tasks were changed. */
export interface Updated {
  updated: number;
}

/** How many tasks were deleted. */
export interface Deleted {
  deleted: number;
}

/** An error in a request, and where: in the body, or in a parameter. */
export interface InvalidMember {
  detail: string;
  pointer?: string;
  parameter?: string;
}
