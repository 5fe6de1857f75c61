/**
 * Option haggling: client flags and options in, option replies out, until an export is agreed on.
 *
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md#option-types
 * Knows no sockets: replies go to `send`, what is to happen next is returned.
 *
 * Invariants:
 * - While TLS is required and missing a client learns nothing of any export, not even whether there is one.
 * - Of what a client agreed on before TLS nothing counts.
 * - Selected metadata contexts are those of the last selection, and only if it was made for the export that is chosen.
 */
import { ProtocolError } from "../../errors.js";
import {
  ClientFlag,
  HandshakeFlag,
  Option,
  OptionReplyType,
  STRING_MAXIMUM_BYTES,
} from "../wire/constants.js";
import { encodeExportNameReply, encodeGreeting } from "../wire/handshake.js";
import type { OptionHeader } from "../wire/option.js";
import { decodeInfoRequest, decodeMetaContextRequest } from "../wire/option.js";
import { encodeList, encodeMetaContext, encodeOptionReply } from "../wire/option-reply.js";
import { decodeString, encodeMessage } from "../wire/strings.js";
import { needsBlockSizeAgreement, transmissionFlagsOf } from "./advertise.js";
import type { Agreement } from "./agreement.js";
import type { ExportTable, NbdExport } from "./exports.js";
import { infoItems } from "./info-items.js";
import { OPTION_DATA_BYTES } from "./limits.js";
import type { SelectedContext } from "./metadata-context.js";
import { listedContexts, selectedContexts } from "./metadata-context.js";

/** What options have changed so far; a TLS session begins with a fresh one. */
interface NegotiationState {
  structuredReplies: boolean;
  /** These take precedence over structured replies. */
  extendedHeaders: boolean;
  /** Of the last SET_META_CONTEXT; of use only if that very export is chosen. */
  selection: { readonly export: NbdExport; readonly contexts: readonly SelectedContext[] } | null;
}

function freshState(): NegotiationState {
  return { structuredReplies: false, extendedHeaders: false, selection: null };
}

/** What an option leads to. */
export type Outcome =
  /** The next option. */
  | { readonly kind: "continue" }
  /** The end, once the replies are sent. */
  | { readonly kind: "finish" }
  /** TLS, once the reply is sent: nothing else may have arrived behind the option. */
  | { readonly kind: "tls" }
  | { readonly kind: "transmission"; readonly agreement: Agreement };

const CONTINUE: Outcome = { kind: "continue" };
const FINISH: Outcome = { kind: "finish" };
const EMPTY: Buffer = Buffer.alloc(0);
const GREETING = encodeGreeting(HandshakeFlag.FixedNewstyle | HandshakeFlag.NoZeroes);

export interface NegotiationOptions {
  readonly exports: ExportTable;
  readonly send: (bytes: Buffer) => void;
  /** null: no TLS; require: nothing but TLS. */
  readonly tls: "on" | "require" | null;
  /** Is told once that a client goes on without the TLS that is required. */
  readonly onTlsMissing: () => void;
  /** The server is being shut down. */
  readonly isStopping: () => boolean;
}

export class Negotiation {
  readonly #options: NegotiationOptions;
  #clientFlags = 0;
  #state = freshState();
  #isSecured = false;
  #tlsMissingReported = false;

  constructor(options: NegotiationOptions) {
    this.#options = options;
  }

  greet(): void {
    this.#options.send(GREETING);
  }

  /** @throws ProtocolError unknown-client-flags */
  clientFlags(flags: number): void {
    if ((flags & ~(ClientFlag.FixedNewstyle | ClientFlag.NoZeroes)) !== 0) {
      throw new ProtocolError(
        "unknown-client-flags",
        `client flags 0x${flags.toString(16)} were never offered`,
      );
    }
    this.#clientFlags = flags;
  }

  /** TLS is there: the client goes on with options, and nothing that it agreed on before counts. */
  secured(): void {
    this.#isSecured = true;
    this.#state = freshState();
  }

  /** Whether option() wants the data of this one. */
  wantsData({ option, lengthBytes }: OptionHeader): boolean {
    if (option === Option.ExportName) return lengthBytes <= STRING_MAXIMUM_BYTES;
    return takesData(option) && lengthBytes <= OPTION_DATA_BYTES;
  }

  /**
   * Answers an option; `data` is null where wantsData() said no.
   * @throws ProtocolError where the document wants the session ended
   */
  option({ option, lengthBytes }: OptionHeader, data: Buffer | null): Outcome {
    if (option === Option.ExportName) return this.#exportName(data);
    if ((this.#clientFlags & ClientFlag.FixedNewstyle) === 0) {
      throw new ProtocolError("not-fixed-newstyle", `option ${option} from a client without fixed newstyle`);
    }
    if (option === Option.Abort) {
      this.#reply(option, OptionReplyType.Ack);
      return FINISH;
    }
    if (option === Option.StartTls) return this.#startTls(lengthBytes);
    if (this.#lacksTls) {
      this.#reportTlsMissing();
      return this.#refuse(option, OptionReplyType.ErrTlsReqd, "start TLS first: this server requires it");
    }
    if (option === Option.SetMetaContext) this.#state.selection = null;
    if (this.#options.isStopping()) {
      return this.#refuse(option, OptionReplyType.ErrShutdown, "the server is shutting down");
    }
    if (takesData(option)) {
      if (data !== null) return this.#optionWithData(option, data);
      return this.#refuse(
        option,
        OptionReplyType.ErrTooBig,
        `at most ${OPTION_DATA_BYTES} bytes of option data`,
      );
    }
    if (!isWithoutData(option)) {
      return this.#refuse(option, OptionReplyType.ErrUnsup, `option ${option} is not supported`);
    }
    if (lengthBytes > 0) return this.#refuse(option, OptionReplyType.ErrInvalid, "this option takes no data");
    if (option === Option.StructuredReply && this.#state.extendedHeaders) {
      return this.#refuse(option, OptionReplyType.ErrExtHeaderReqd, "extended headers are agreed on already");
    }
    if (option === Option.List) return this.#list();
    this.#state.structuredReplies = true;
    if (option === Option.ExtendedHeaders) this.#state.extendedHeaders = true;
    return this.#acknowledge(option);
  }

  get #lacksTls(): boolean {
    return this.#options.tls === "require" && !this.#isSecured;
  }

  #reportTlsMissing(): void {
    if (this.#tlsMissingReported) return;
    this.#tlsMissingReported = true;
    this.#options.onTlsMissing();
  }

  #startTls(lengthBytes: number): Outcome {
    const option = Option.StartTls;
    if (this.#options.tls === null)
      return this.#refuse(option, OptionReplyType.ErrPolicy, "TLS is switched off");
    if (this.#isSecured) return this.#refuse(option, OptionReplyType.ErrInvalid, "TLS is in use already");
    if (lengthBytes > 0) return this.#refuse(option, OptionReplyType.ErrInvalid, "this option takes no data");
    if (this.#options.isStopping()) {
      return this.#refuse(option, OptionReplyType.ErrShutdown, "the server is shutting down");
    }
    this.#reply(option, OptionReplyType.Ack);
    return { kind: "tls" };
  }

  /** Can't be answered with an error: the session ends instead. */
  #exportName(data: Buffer | null): Outcome {
    if (this.#lacksTls) throw new ProtocolError("tls-required", "a client without TLS, which is required");
    if (data === null) throw new ProtocolError("bad-export-name", "an export name longer than 4096 bytes");
    if (this.#state.extendedHeaders) {
      throw new ProtocolError("bad-export-name", "extended headers go with NBD_OPT_GO only");
    }
    const name = decodeString(data);
    const found = this.#options.exports.get(name);
    if (found === undefined) throw new ProtocolError("unknown-export", `there is no export "${name}"`);
    const reason = this.#options.isStopping() ? "the server is shutting down" : (found.refusal?.() ?? null);
    if (reason !== null) throw new ProtocolError("export-refused", `export "${name}": ${reason}`);
    if (needsBlockSizeAgreement(found)) {
      throw new ProtocolError(
        "block-size-required",
        `export "${name}" has block sizes that the client doesn't know`,
      );
    }
    const agreement = this.#agreement(found);
    const geometry = {
      sizeBytes: found.device.info.sizeBytes,
      transmissionFlags: transmissionFlagsOf(agreement),
    };
    this.#options.send(encodeExportNameReply(geometry, (this.#clientFlags & ClientFlag.NoZeroes) !== 0));
    return { kind: "transmission", agreement };
  }

  #optionWithData(option: number, data: Buffer): Outcome {
    try {
      if (option === Option.Info || option === Option.Go) return this.#infoOrGo(option, data);
      return this.#metaContext(option, data);
    } catch (error) {
      // Whatever the option's data say, its header told where the next one starts.
      if (error instanceof ProtocolError)
        return this.#refuse(option, OptionReplyType.ErrInvalid, error.message);
      throw error;
    }
  }

  #infoOrGo(option: number, data: Buffer): Outcome {
    const request = decodeInfoRequest(data);
    const found = this.#options.exports.get(request.exportName);
    if (found === undefined) return this.#refuseUnknown(option, request.exportName);
    const reason = found.refusal?.() ?? null;
    if (reason !== null) return this.#refuse(option, OptionReplyType.ErrPolicy, reason);
    const items = infoItems(this.#agreement(found), request.infoTypes);
    for (const item of items.sent) this.#reply(option, OptionReplyType.Info, item);
    if (items.lacksBlockSize) {
      return this.#refuse(option, OptionReplyType.ErrBlockSizeReqd, "ask for the block size constraints");
    }
    this.#reply(option, OptionReplyType.Ack);
    return option === Option.Go ? { kind: "transmission", agreement: this.#agreement(found) } : CONTINUE;
  }

  #metaContext(option: number, data: Buffer): Outcome {
    const { exportName, queries } = decodeMetaContextRequest(data);
    if (!this.#state.structuredReplies) {
      return this.#refuse(option, OptionReplyType.ErrInvalid, "negotiate structured replies first");
    }
    const found = this.#options.exports.get(exportName);
    if (found === undefined) return this.#refuseUnknown(option, exportName);
    if (option === Option.ListMetaContext) {
      for (const { name } of listedContexts(found, queries)) {
        this.#reply(option, OptionReplyType.MetaContext, encodeMetaContext({ id: 0, name }));
      }
    } else {
      const contexts = selectedContexts(found, queries);
      this.#state.selection = { export: found, contexts };
      for (const { id, context } of contexts) {
        this.#reply(option, OptionReplyType.MetaContext, encodeMetaContext({ id, name: context.name }));
      }
    }
    return this.#acknowledge(option);
  }

  #list(): Outcome {
    const entries = this.#options.exports
      .list()
      .map(({ name, description }) => ({ exportName: name, description: description ?? "" }));
    this.#options.send(encodeList(entries));
    return CONTINUE;
  }

  #agreement(chosen: NbdExport): Agreement {
    const { structuredReplies, extendedHeaders, selection } = this.#state;
    return {
      export: chosen,
      structuredReplies,
      extendedHeaders,
      contexts: selection?.export === chosen ? selection.contexts : [],
    };
  }

  #acknowledge(option: number): Outcome {
    this.#reply(option, OptionReplyType.Ack);
    return CONTINUE;
  }

  #refuseUnknown(option: number, exportName: string): Outcome {
    return this.#refuse(option, OptionReplyType.ErrUnknown, `there is no export "${exportName}"`);
  }

  #refuse(option: number, type: number, message: string): Outcome {
    this.#reply(option, type, encodeMessage(message));
    return CONTINUE;
  }

  #reply(option: number, type: number, data: Buffer = EMPTY): void {
    this.#options.send(encodeOptionReply(option, type, data));
  }
}

function takesData(option: number): boolean {
  return (
    option === Option.Info ||
    option === Option.Go ||
    option === Option.ListMetaContext ||
    option === Option.SetMetaContext
  );
}

function isWithoutData(option: number): boolean {
  return option === Option.List || option === Option.StructuredReply || option === Option.ExtendedHeaders;
}
