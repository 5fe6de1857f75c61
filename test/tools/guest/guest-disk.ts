/** The ways in which a guest gets its disk over NBD. */

/** What a guest is told on its kernel's command line (init.sh), and with which devices it gets its disk. */
export interface GuestDisk {
  readonly devices: readonly string[];
  readonly parameters: string;
}

/** QEMU is the NBD client. @param host what the guest can read of it, as the disk's serial number */
export function virtioDisk(uri: string, host = "host", ...options: readonly string[]): GuestDisk {
  return {
    devices: [
      ...["-drive", [`if=none,id=disk,format=raw,file=${uri}`, ...options].join(",")],
      ...["-device", `virtio-blk-pci,drive=disk,serial=${host}`],
    ],
    parameters: "disk=virtio",
  };
}

/** Without it, a request that is in flight when the server goes away hangs for ever (docs/guests.md). */
const NBD_OPTIONS = "-nonetlink";

/**
 * The guest's kernel is the NBD client, over a network of the guest's own.
 * @param address HOST:PORT on loopback
 * @param options more of nbd-client
 */
export function kernelNbdDisk(address: string, ...options: readonly string[]): GuestDisk {
  return {
    // A card without a boot ROM: Debian has those in a package that QEMU doesn't need otherwise.
    devices: ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="],
    parameters: `disk=nbd port=${address.slice(address.lastIndexOf(":") + 1)} nbd_options="${[NBD_OPTIONS, ...options].join(" ")}"`,
  };
}
