/** As if the process was stopped and went on: nothing of the event loop runs meanwhile, then its timers come first. */
export function stopThisProcess(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
