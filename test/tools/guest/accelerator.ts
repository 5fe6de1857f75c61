/** Whether KVM runs guests here: it may be there and fail, so a guest is booted to find out. */
import { TestProcess } from "../process.js";
import { waitFor } from "../wait-for.js";
import type { GuestImage } from "./guest-image.js";

/** Longer than any boot with KVM takes. */
const PROBE_LIMIT_MS = 5000;

/** QEMU's options for the best accelerator that works. */
export async function workingAccelerator(image: GuestImage): Promise<readonly string[]> {
  const kvm = ["-accel", "kvm", "-cpu", "host"];
  return (await boots(image, kvm)) ? kvm : ["-accel", "tcg"];
}

async function boots({ kernel, initramfs }: GuestImage, accelerator: readonly string[]): Promise<boolean> {
  const qemu = await TestProcess.start("qemu-system-x86_64", [
    ...[...accelerator, "-m", "192", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"],
    ...["-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 loglevel=0 disk=none job=true"],
  ]);
  const deadlineMs = performance.now() + PROBE_LIMIT_MS;
  await waitFor(
    "the probe to end",
    () => qemu.stdout.includes("@booted") || !qemu.isRunning || performance.now() > deadlineMs,
    (isOver) => isOver,
  );
  const { stdout } = await qemu.kill();
  return stdout.includes("@booted");
}
