/** What options and configurations are held to. */

/** Of an image's side, in pixels. */
export const LARGEST_SIDE = 16384;
