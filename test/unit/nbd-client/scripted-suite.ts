/** A scripted server for each test of a suite, and our client connected to it. */
import type { Address } from "../../../src/net/address.js";
import { connectNbd } from "../../../src/nbd/client/connect.js";
import type { NbdClientOptions } from "../../../src/nbd/client/connect.js";
import type { NbdDevice } from "../../../src/nbd/client/device.js";
import { ChunkFlag, ChunkType, Command } from "../../../src/nbd/wire/constants.js";
import { ScriptedServer, chunk, simpleReply } from "./scripted-server.js";
import type { ClientHandshake, Grants, Peer } from "./scripted-server.js";

/** Not an expectation: a handshake that takes longer hangs. */
const CONNECT_TIMEOUT_MS = 5000;

export class ScriptedSuite {
  #server: ScriptedServer | null = null;
  readonly #devices: NbdDevice[] = [];

  /** Starts the test's server; returns its address. */
  async serve(script: (peer: Peer) => Promise<void>, kind: Address["kind"] = "unix"): Promise<Address> {
    await this.#server?.stop();
    this.#server = await ScriptedServer.start(script, kind);
    return this.#server.address;
  }

  /** Connects to a server that does what the script says, handshake included. */
  async connectTo(script: (peer: Peer) => Promise<void>): Promise<NbdDevice> {
    const address = await this.serve(script);
    return this.#connect(address);
  }

  /** What client and server learn from a handshake, after which the client leaves. */
  async connectGranted(
    grants: Grants,
    exportName = "disk",
    options: Partial<NbdClientOptions> = {},
  ): Promise<{ device: NbdDevice; said: ClientHandshake | null }> {
    let said = null as ClientHandshake | null;
    const address = await this.serve(async (peer) => {
      said = await peer.handshake(grants);
      await peer.hangUp();
    });
    const device = await this.#connect(address, exportName, options);
    await device.close();
    return { device, said };
  }

  /** A device whose server does the handshake, then what the script says, then waits for the client to go. */
  async open(
    grants: Grants,
    script: (peer: Peer) => Promise<void>,
    maxInFlight = 128,
    kind: Address["kind"] = "unix",
    metaContexts: readonly string[] = [],
  ): Promise<NbdDevice> {
    const address = await this.serve(async (peer) => {
      await peer.handshake(grants);
      await script(peer);
      await peer.hangUp();
    }, kind);
    return this.#connect(address, "", { maxInFlight, metaContexts });
  }

  /** A device whose server answers everything with success, reads of extended headers excepted; `seen` is what came: type, flags, offset, length. */
  async openAgreeable(grants: Grants): Promise<{ disk: NbdDevice; seen: number[][] }> {
    const seen: number[][] = [];
    const disk = await this.open(grants, async (peer) => {
      for (let request = await peer.requestOrEnd(); request !== null; request = await peer.requestOrEnd()) {
        const { type, flags, offset, lengthBytes } = request;
        seen.push([type, flags, offset, lengthBytes]);
        if (type === Command.Disconnect) return;
        if (grants.extendedHeaders === true) peer.send(chunk(request, ChunkFlag.Done, ChunkType.None));
        else peer.send(simpleReply(request, 0, Buffer.alloc(type === Command.Read ? lengthBytes : 0)));
      }
    });
    return { disk, seen };
  }

  /** Ends the devices, then the server; rejects with what a script threw. */
  async stop(): Promise<void> {
    for (const device of this.#devices.splice(0)) device.destroy(new Error("the test is over"));
    const server = this.#server;
    this.#server = null;
    await server?.stop();
  }

  async #connect(
    address: Address,
    exportName = "disk",
    options: Partial<NbdClientOptions> = {},
  ): Promise<NbdDevice> {
    const device = await connectNbd({
      address,
      exportName,
      connectTimeoutMs: CONNECT_TIMEOUT_MS,
      ...options,
    });
    this.#devices.push(device);
    return device;
  }
}

/** To be called in a describe(). */
export function useScriptedServer(): ScriptedSuite {
  const suite = new ScriptedSuite();
  afterEach(() => suite.stop());
  return suite;
}
