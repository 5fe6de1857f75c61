/** The dirty map of a disk that has been made larger. */
import { DirtyMapFile, type DirtyMapGeometry } from "./dirty-map-file.js";
import { BITS_PER_SECTOR, emptyWords, type Sector } from "./dirty-map-format.js";
import type { StateDirectory } from "./state-directory.js";

/**
 * Makes the map of a smaller disk one of this size, in one step. What is new is missed, and so is the block in which the disk
 * ended; all else is as it was, its tenure too. Where the map has this size, or there is none, nothing is done.
 * @throws MetadataError if the file can't be trusted; DeviceError if there can't be another one: nothing has changed then
 */
export async function growDirtyMapFile(
  directory: StateDirectory,
  name: string,
  geometry: DirtyMapGeometry,
): Promise<void> {
  const sizeBytes = await DirtyMapFile.diskSizeBytes(directory, name);
  if (sizeBytes === null || sizeBytes >= geometry.sizeBytes) return;
  const sectors: Sector[] = [];
  const old = await DirtyMapFile.open(directory, name, { ...geometry, sizeBytes }, (sector) => {
    sectors.push(sector);
  });
  if (old === null) return;
  const { tenure } = old;
  await old.close();
  setBlocks(
    sectors,
    Math.floor(sizeBytes / geometry.blockBytes),
    Math.ceil(geometry.sizeBytes / geometry.blockBytes),
  );
  // One that a crash leaves under this name is made anew: the map is as small then as it was.
  const unfinished = `${name}.new`;
  const grown = await DirtyMapFile.create(directory, unfinished, geometry);
  try {
    await grown.write(sectors);
    await grown.setTenure(tenure);
  } finally {
    await grown.close();
  }
  await directory.rename(unfinished, name);
}

/** Sets the bits [first, end) of the blocks, in sectors that are there or that are added. */
function setBlocks(sectors: Sector[], first: number, end: number): void {
  const ofBlocks = new Map(
    sectors.filter(({ region }) => region === "blocks").map((sector) => [sector.index, sector]),
  );
  for (let block = first; block < end; block++) {
    const index = Math.floor(block / BITS_PER_SECTOR);
    let sector = ofBlocks.get(index);
    if (sector === undefined) {
      sector = { region: "blocks", index, words: emptyWords() };
      ofBlocks.set(index, sector);
      sectors.push(sector);
    }
    const bit = block % BITS_PER_SECTOR;
    const word = Math.floor(bit / 32);
    sector.words[word] = ((sector.words[word] ?? 0) | (1 << (bit % 32))) >>> 0;
  }
}
