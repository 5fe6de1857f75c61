/** What became of a request, in a word: "done", or the code it was refused with. */
import { DeviceError, ReplError } from "../../src/errors.js";

export function outcome(request: Promise<unknown>): Promise<string> {
  return request.then(
    () => "done",
    (error: unknown) => {
      if (error instanceof ReplError) return error.code;
      throw error;
    },
  );
}

/** The error that a request failed with. */
export async function failureOf(request: Promise<unknown>): Promise<Error> {
  let result: unknown;
  try {
    result = await request;
  } catch (error) {
    if (error instanceof Error) return error;
    throw error;
  }
  throw new Error(`did not fail: ${String(result)}`);
}

/** The error of a device that a request failed with. */
export async function deviceErrorOf(request: Promise<unknown>): Promise<DeviceError> {
  const error = await failureOf(request);
  if (error instanceof DeviceError) return error;
  throw error;
}

/** Resolves after everything that can go on without a timer or a file has gone on. */
export async function turns(count = 3): Promise<void> {
  for (let turn = 0; turn < count; turn++) await new Promise((resolve) => setImmediate(resolve));
}

/** Whether a promise has settled by now. */
export async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  const settle = (): void => {
    settled = true;
  };
  promise.then(settle, settle);
  await turns();
  return settled;
}
