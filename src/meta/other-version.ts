import { MetadataError } from "../errors.js";

/** A file of the state directory is in a format that this program does not read. */
export function otherVersion(path: string, version: number, known: number): MetadataError {
  return new MetadataError(
    "version",
    `${path} has format version ${version}; this program reads ${known}: start the one that wrote it, or remove the directory, which costs a full copy`,
  );
}
