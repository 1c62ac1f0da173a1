// A way to the service that can be cut, stand still, and lose answers.
import net from "node:net";

export class Proxy {
  lost = 0; // so many answers to creates are still to be lost
  #pairs = new Set();
  #mode = "open";

  constructor(service) {
    const { hostname, port } = new URL(service);
    this.server = net.createServer((client) => {
      if (this.#mode === "closed") return client.destroy();
      const pair = { sockets: [client, net.connect(port, hostname)], held: [] };
      this.#pairs.add(pair);
      for (const [index, socket] of pair.sockets.entries()) {
        socket.on("error", () => {});
        socket.on("close", () => {
          this.#pairs.delete(pair);
          pair.sockets[1 - index].destroy();
        });
        socket.on("data", (data) => {
          if (index === 0 && this.lost && data.includes("POST /api/tasks")) {
            this.lost -= 1;
            pair.isLost = true; // it will be done, and nobody will be told
          } else if (index === 1 && pair.isLost) return client.destroy();
          if (this.#mode === "still") pair.held.push([index, data]);
          else if (!pair.isDead) pair.sockets[1 - index].write(data);
        });
      }
    });
  }

  async listen() {
    await new Promise((resolve) => this.server.listen(0, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${this.server.address().port}`;
    return this;
  }

  cut() {
    for (const { sockets } of this.#pairs) sockets[0].destroy();
  }

  /** Cut all connections, and refuse others. */
  close() {
    this.#mode = "closed";
    this.cut();
  }

  /** Carry nothing for a while. */
  hold() {
    this.#mode = "still";
  }

  /** Carry nothing on the connections that there are, and do not say so. */
  kill() {
    for (const pair of this.#pairs) pair.isDead = true;
  }

  open() {
    this.#mode = "open";
    for (const { sockets, held } of this.#pairs)
      for (const [index, data] of held.splice(0)) sockets[1 - index].write(data);
  }

  end() {
    this.close();
    this.server.close();
  }
}
