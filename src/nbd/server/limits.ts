/**
 * What one client may cost the server; each bound pushes back on its socket or ends its connection.
 *
 * The memory of a client in transmission is PAYLOAD_IN_FLIGHT_BYTES and one more payload (32 MiB) at most,
 * besides replies without payload; that of all clients together is what memory-pool.ts grants. In which order a request
 * passes turns.ts, device-depth.ts and memory-pool.ts: docs/ARCHITECTURE.md, "A request among many".
 */

/** Requests of one connection that are not answered, or whose answer the kernel has not taken yet. */
export const REQUESTS_IN_FLIGHT = 256;

/**
 * Requests that the device of an export has under way, of all clients together; no more than one client alone may have. Further
 * ones wait, but for the first of a client that has none: nobody is to wait for good for others' requests that never settle.
 */
export const DEVICE_REQUESTS = 256;

/** Whoever waits for the device looks again after this, even if nothing has settled there. */
export const DEVICE_WAIT_MS = 100;

/** Payloads of those requests. No further request is read from here on; the last one may go past it. */
export const PAYLOAD_IN_FLIGHT_BYTES = 16 * 1024 * 1024;

/** Memory of all clients of a server together, besides the guaranteed part of each: for the largest request, and smaller ones. */
export const SERVER_PAYLOAD_BYTES = 36 * 1024 * 1024;

/**
 * The least memory that a request counts for. What is really kept for it, besides its payload, is a tenth of that; but thousands
 * that settle at once, as after a flush, would hold up everybody else.
 */
export const REQUEST_MEMORY_BYTES = 16 * 1024;

/** What each client may hold at any time, whatever the others hold. */
export const MEMORY_GUARANTEED_BYTES = 32 * 1024;

/** For clients with one request, or one read, at a time, of RESERVE_REQUEST_BYTES at most, that would have to wait for memory otherwise. */
export const RESERVE_BYTES = 4 * 1024 * 1024;
export const RESERVE_REQUEST_BYTES = 1024 * 1024;
/** For each byte of the last of the reserve a client has to have moved so many, for each of the first one. */
export const RESERVE_PRICE = 256;

/** While memory is short, a client that holds more has to move MEMORY_PROGRESS_BYTES in each of these periods. */
export const MEMORY_PRESSURE_MS = 1000;
export const MEMORY_PROGRESS_BYTES = 64 * 1024;

/**
 * Replies to options that wait for a client to read them. No further option is read from here on. Such a reply has some
 * thirty bytes, and costs ten times that.
 */
export const QUEUED_OPTION_REPLY_BYTES = 4096;

/** Replies that wait for a client to read them. No further request is read from here on. */
export const QUEUED_REPLY_BYTES = 8 * 1024 * 1024;

/** Replies handed to the kernel in one go; a client has to take that much within the stall timeout. */
export const HANDOVER_BYTES = 1024 * 1024;

/** From this length on a handover is more than a unix socket takes in one go. */
export const LONG_HANDOVER_BYTES = 256 * 1024;

/** Longer reads are left to the thread pool, longer payloads are received piece by piece. */
export const MOVED_AT_ONCE_BYTES = 64 * 1024;

/** The most of a payload that is received in one go. */
export const DIRECT_READ_BYTES = 256 * 1024;

/** Data of one option; the longest sensible one is a list of metadata context queries. */
export const OPTION_DATA_BYTES = 64 * 1024;

/** Payload of a BLOCK_STATUS that names contexts; an export has a handful of them. */
export const STATUS_FILTER_BYTES = 1024;

/** Descriptors for each metadata context in the reply to one BLOCK_STATUS. */
export const BLOCK_STATUS_DESCRIPTORS = 1024;

/** Reads from here on are looked up for holes; below that the lookup costs more than it saves. */
export const SPARSE_READ_MINIMUM_BYTES = 64 * 1024;

/** Extents looked up for one sparse read, each of them two system calls for a file; what lies behind them is sent as data. */
export const SPARSE_READ_EXTENTS = 8;

/** What one CACHE reads at most, as one READ may ask for. */
export const PREFETCH_MAXIMUM_BYTES = 32 * 1024 * 1024;

/** What it reads at a time. */
export const PREFETCH_PIECE_BYTES = 256 * 1024;

/** Connections of one server; `npm run bench:hostile` measures what they may cost when most of them are hostile. */
export const DEFAULT_MAX_CONNECTIONS = 1024;

/** Of these from one host; a client that opens several for one disk opens four to sixteen. */
export const DEFAULT_MAX_CONNECTIONS_PER_PEER = 64;

/** From accept to transmission. */
export const DEFAULT_HANDSHAKE_TIMEOUT_MS = 10_000;

/**
 * How long the kernel may take none of the replies that are queued: a guest whose host is paused is to find its disk when it goes on,
 * as long as a silent one is kept (net/keepalive.ts). What the client holds meanwhile is bounded; if others wait for it, it is cut
 * off sooner (memory-pool.ts).
 */
export const DEFAULT_STALL_TIMEOUT_MS = 15 * 60_000;

/** From our FIN to the peer's; closing sooner could reset the connection and lose the last replies. */
export const LINGER_TIMEOUT_MS = 1000;
