import { Device } from "../index.ts";

let opened: Promise<Device> | undefined;

/** The one device that all tests of a process share: opening an adapter costs 0.1 s, and pipelines are cached in it. */
export function testDevice(): Promise<Device> {
  opened ??= Device.open();
  return opened;
}
