import { betterAuth } from "better-auth";
import { jwt } from "better-auth/plugins";
import { PostgresDialect } from "kysely";
import { resolve } from "node:path";
import { Pool } from "pg";

// Without DATABASE_URL, the private database of the service that runs in this repository.
const connectionString =
  process.env.DATABASE_URL ?? `postgresql://todo@/postgres?host=${resolve("../../.data/socket")}`;

export const auth = betterAuth({
  baseURL: process.env.BETTER_AUTH_URL ?? "http://localhost:3000",
  database: {
    type: "postgres",
    dialect: new PostgresDialect({ pool: new Pool({ connectionString }) }),
    schemaName: "better_auth", // the service's own tables are elsewhere
  },
  emailAndPassword: { enabled: true },
  plugins: [jwt()],
});
