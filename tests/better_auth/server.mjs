// A real Better Auth server in memory, for the tests: `node server.mjs EdDSA`.
// It prints its URL when it is ready, and ends with its standard input. A line there is a command:
// "sign-up <email>" prints a token that Better Auth's own client has fetched after a sign-up, and
// what else that client has,
// "sign <claims>" prints a token with claims of one's own, "rotate" has the next be signed by a new key.
import { createServer } from "node:http";
import { createInterface } from "node:readline";

import { betterAuth } from "better-auth";
import { memoryAdapter } from "better-auth/adapters/memory";
import { createAuthClient } from "better-auth/client";
import { jwtClient } from "better-auth/client/plugins";
import { toNodeHandler } from "better-auth/node";
import { jwt } from "better-auth/plugins";

const server = createServer((request, response) => handle(request, response));
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const baseURL = `http://127.0.0.1:${server.address().port}`;

const tables = { user: [], session: [], account: [], verification: [], jwks: [] };
const auth = betterAuth({
  baseURL,
  secret: "a secret of the Better Auth server of the tests",
  database: memoryAdapter(tables),
  emailAndPassword: { enabled: true },
  telemetry: { enabled: false },
  rateLimit: { enabled: false },
  plugins: [jwt({ jwks: { keyPairConfig: { alg: process.argv[2] } } })],
});
const handle = toNodeHandler(auth);

async function signUp(email) {
  let cookie = "";
  const client = createAuthClient({
    baseURL,
    plugins: [jwtClient()],
    fetchOptions: {
      // Browsers keep cookies by themselves.
      headers: { origin: baseURL },
      onRequest: (context) => context.headers.set("cookie", cookie),
      onSuccess: ({ response }) => {
        cookie = response.headers.getSetCookie().map((each) => each.split(";")[0]).join("; ") || cookie;
      },
    },
  });
  const signedUp = await client.signUp.email({ email, password: "canary horse battery", name: email });
  if (signedUp.error) throw new Error(JSON.stringify(signedUp.error));
  const { data, error } = await client.token();
  if (error) throw new Error(JSON.stringify(error));
  const { user, token: session } = signedUp.data;
  const there = await auth.api.getToken({ headers: new Headers({ cookie }) }); // as its server does
  return JSON.stringify({ token: data.token, server_token: there.token, user_id: user.id, session, cookie });
}

const commands = {
  "sign-up": signUp,
  rotate: () => {
    for (const key of tables.jwks) key.expiresAt = new Date(Date.now() - 1000);
    return "rotated";
  },
  sign: async (claims) => (await auth.api.signJWT({ body: { payload: JSON.parse(claims) } })).token,
};

// Two requests that find no key make one each, of which one stays unknown to who asked first.
await auth.api.getJwks();
console.log(baseURL);
for await (const line of createInterface({ input: process.stdin })) {
  const [command, argument] = line.split(" ");
  console.log(await commands[command](argument));
}
process.exit();
