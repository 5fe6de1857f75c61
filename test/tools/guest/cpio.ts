/** Archives in the format of the kernel's initramfs: cpio, "newc" (Documentation/driver-api/early-userspace/buffer-format.rst). */

const TRAILER = "TRAILER!!!";
const DIRECTORY_MODE = 0o040755;
const EXECUTABLE_MODE = 0o100755;

/** A path without a leading slash; a directory has no content. */
export interface ArchiveEntry {
  readonly path: string;
  readonly content: Buffer | null;
}

/** Directories have to stand before what is in them. */
export function cpioArchive(entries: readonly ArchiveEntry[]): Buffer {
  const members = entries.map(({ path, content }, index) =>
    member(path, index + 1, content === null ? DIRECTORY_MODE : EXECUTABLE_MODE, content ?? Buffer.alloc(0)),
  );
  return Buffer.concat([...members, member(TRAILER, 0, 0, Buffer.alloc(0))]);
}

function member(path: string, inode: number, mode: number, content: Buffer): Buffer {
  const name = Buffer.from(`${path}\0`);
  const links = 1;
  const [uid, gid, mtime, major, minor, deviceMajor, deviceMinor, check] = [0, 0, 0, 0, 0, 0, 0, 0];
  const fields = [
    ...[inode, mode, uid, gid, links, mtime, content.length],
    ...[major, minor, deviceMajor, deviceMinor, name.length, check],
  ];
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, "0")).join("")}`;
  return Buffer.concat([padded(Buffer.concat([Buffer.from(header), name])), padded(content)]);
}

/** Header with name, and content, each end at a multiple of four bytes. */
function padded(bytes: Buffer): Buffer {
  return Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)]);
}
