/**
 * Whether the secondary disks may lack something that their writer believes to be there.
 *
 * A primary of ours says hello (handshake), resyncs what it knows to be missing and then asks for a checkpoint. A QEMU
 * primary reconnects by itself after a reset and goes on, and the writes between are lost without a trace. So a hole is
 * assumed as soon as a writer went away with requests unanswered, had one refused, or came back without a resync.
 *
 * A writer that was cut off with everything answered leaves no hole, but its replica may be behind: the writer may have gone on
 * without it. Only a writer that took leave (NBD_CMD_DISC) certainly had nothing on its way. One that was cut off before its first
 * write came in is told from a reader by not having read: a QEMU primary never reads its replica.
 *
 * A primary that introduced itself is told a name that its connections show (writerExport()). Nobody writes beside them, nor
 * while they are lost, for as long as the replication goes on that the primary began: one foreign write, and its dirty map
 * would not tell any more what the replica lacks.
 *
 * Invariants:
 * - `gap` and `cutOff` only go from set to null through `begin()`, when replication is started anew, or `resynced()`, on the word of
 *   the session whose connections have all held since its handshake.
 * - While connections of the session are open that were made since its handshake, only they may write. While a primary introduces
 *   itself nobody is admitted, since whoever was would not be cut off.
 * - A connection that is refused changes nothing here.
 */
import type { ConnectionObserver, ConnectionSummary } from "../../nbd/server/exports.js";

/** How a primary of ours names a handshake. */
export type SessionId = string;

/** What outlasts a restart. */
export interface WriterTrace {
  /** Why the replica may have a hole, or null. */
  readonly gap: string | null;
  /** Which writer was cut off, after which its replica may be behind it, or null. */
  readonly cutOff: string | null;
}

export class WriterTracker implements WriterTrace {
  #gap: string | null;
  #cutOff: string | null;
  #session: SessionId | null = null;
  /** What the session's connections show; null: there was no handshake. */
  #writer: string | null = null;
  /** Counts handshakes: a connection belongs to the one before it. */
  #handshakes = 0;
  #hasDeparted = false;
  #isWatching = false;
  #isIntroducing = false;
  /** The session has said that nothing is missing. */
  #isTrusted = false;
  /** Open connections of the session, made since its handshake; whose they are. */
  readonly #own = new Map<symbol, string>();
  /** Open connections of others that have written. */
  readonly #others = new Map<symbol, string>();
  readonly #isReserved: () => boolean;
  readonly #onChange: () => void;

  /**
   * @param known from before a restart
   * @param isReserved whether the replication is one that a primary began by introducing itself, be it connected or not
   */
  constructor({ gap, cutOff }: WriterTrace, isReserved: () => boolean, onChange: () => void) {
    this.#gap = gap;
    this.#cutOff = cutOff;
    this.#isReserved = isReserved;
    this.#onChange = onChange;
  }

  get gap(): string | null {
    return this.#gap;
  }

  get cutOff(): string | null {
    return this.#cutOff;
  }

  /** The session that introduced itself and has not been lost since. */
  get session(): SessionId | null {
    return this.#session;
  }

  /** What the connections show of the primary that introduced itself last (writerExport()); null: none has. */
  get writer(): string | null {
    return this.#writer;
  }

  /** Who writes, or may at any time; null: nobody. */
  get peer(): string | null {
    const [peer] = [...this.#own.values(), ...this.#others.values()];
    return peer ?? null;
  }

  /** Whether the primary that introduced itself is connected. */
  get isSessionConnected(): boolean {
    return this.#own.size > 0;
  }

  /** From now on lost writes matter: replication runs. Before that the first copy may start over as it likes. */
  begin(): void {
    this.#isWatching = true;
    this.#hasDeparted = false;
    this.#mended();
    // A manager may have started in the midst of a copy.
    if (this.#own.size > 0 && !this.#isTrusted)
      this.#setGap("a primary is connected that has not said that nothing is missing");
  }

  /** After a restart in the middle of an epoch. */
  resume(): void {
    this.#isWatching = true;
    this.#hasDeparted = true;
  }

  end(): void {
    this.#isWatching = false;
    this.#isTrusted = false;
    this.#session = null;
    this.#mended();
  }

  /** All writers are about to be cut off for a primary that introduces itself; no new one is admitted before introductionEnded(). */
  introductionBegins(): void {
    this.#isIntroducing = true;
  }

  /** Also if nothing came of it. */
  introductionEnded(): void {
    this.#isIntroducing = false;
  }

  /**
   * A primary introduced itself; whoever wrote before has been cut off.
   * @param writer what its connections will show
   */
  introduce(session: SessionId, writer: string): void {
    this.#session = session;
    this.#writer = writer;
    this.#isTrusted = false;
    this.#handshakes++;
    this.#own.clear();
    this.#others.clear();
    if (this.#isWatching)
      this.#setGap(this.#gap ?? "the primary has reconnected and its resync is not finished");
  }

  /** The session says that nothing is missing any more. @returns false if its word doesn't count */
  resynced(session: SessionId): boolean {
    if (session !== this.#session) return false;
    this.#hasDeparted = false;
    this.#isTrusted = true;
    this.#mended();
    return true;
  }

  /** A write failed here, after it was acknowledged or not. */
  writeFailed(reason: string): void {
    if (this.#isWatching) this.#setGap(this.#gap ?? reason);
  }

  /**
   * To be told of each connection to a replication export.
   * @param isOfSession whether it shows `writer`
   * @param onWrite told at its first write, and why it is refused, if it is
   */
  observe(
    peer: string,
    isOfSession: boolean,
    onWrite: (refusal: string | null) => void = () => undefined,
  ): ConnectionObserver {
    const handshake = this.#handshakes;
    const connection = Symbol(peer);
    if (isOfSession) this.#own.set(connection, peer);
    return {
      firstWrite: (): string | null => {
        const refusal = isOfSession ? this.#refuseOwn(handshake) : this.#refuseOther();
        if (refusal === null && !isOfSession) this.#admitOther(peer, connection);
        onWrite(refusal);
        return refusal;
      },
      closed: (summary): void => {
        // A connection that a handshake replaced has been accounted for by that handshake.
        if (handshake !== this.#handshakes) return;
        const wasAdmitted = this.#others.delete(connection);
        if (!isOfSession && !wasAdmitted) {
          this.#othersClosed(peer, summary);
          return;
        }
        if (this.#own.delete(connection)) this.#session = null;
        this.#closed(peer, summary);
      },
    };
  }

  /** @returns why a connection that was made after that many handshakes may not write, or null */
  #refuseOwn(handshake: number): string | null {
    const isCurrent = handshake === this.#handshakes && this.#session !== null;
    return isCurrent && !this.#isIntroducing ? null : "the primary has to introduce itself again";
  }

  #refuseOther(): string | null {
    if (this.#isIntroducing) return "a primary is introducing itself";
    if (this.#own.size > 0) return "a primary introduced itself, and nobody writes beside it";
    return this.#isReserved()
      ? "a primary that introduced itself replicates to the secondary: that one has to attach with --replica-qmp; to let others write, stop that first (QMP xen-set-replication, enable: false, primary: false)"
      : null;
  }

  #admitOther(peer: string, connection: symbol): void {
    this.#session = null;
    this.#others.set(connection, peer);
    if (this.#isWatching && this.#hasDeparted)
      this.#setGap(this.#gap ?? `writer ${peer} came back without a resync`);
  }

  /** One that was not admitted: it was refused, or no write of its has come. */
  #othersClosed(peer: string, { clean, reads, writes }: ConnectionSummary): void {
    if (clean || reads > 0 || writes > 0 || !this.#isWatching || this.#refuseOther() !== null) return;
    this.#hasDeparted = true;
    this.#wasCutOff(peer);
    this.#onChange();
  }

  #wasCutOff(peer: string): void {
    this.#cutOff ??= `writer ${peer} went away without NBD_CMD_DISC, and may have gone on without this replica: fail over, or make the disks the same and start replication anew`;
  }

  #closed(peer: string, summary: ConnectionSummary): void {
    // A connection that wrote nothing leaves nothing behind. A primary that lost such a connection with writes on their way to it
    // has no answers to them, and asks for no checkpoint before it has come back.
    if (summary.writes === 0 || !this.#isWatching) return;
    this.#hasDeparted = true;
    if (!summary.clean) this.#wasCutOff(peer);
    if (summary.unansweredWrites > 0) {
      this.#setGap(
        this.#gap ?? `writer ${peer} went away with ${summary.unansweredWrites} requests unanswered`,
      );
    } else if (summary.failedWrites > 0) {
      this.#setGap(this.#gap ?? `${summary.failedWrites} writes of ${peer} were refused`);
    } else this.#onChange();
  }

  #mended(): void {
    this.#cutOff = null;
    this.#setGap(null);
  }

  #setGap(gap: string | null): void {
    this.#gap = gap;
    this.#onChange();
  }
}
