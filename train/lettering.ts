/** Small letters for pictures, so that labels look the same on machines with other fonts or none. */

/** Rows of each glyph, top to bottom; "#" is ink. Capitals serve for both cases. */
const GLYPHS: Record<string, string> = {
  A: ".#. #.# ### #.# #.#",
  B: "##. #.# ##. #.# ##.",
  C: ".## #.. #.. #.. .##",
  D: "##. #.# #.# #.# ##.",
  E: "### #.. ##. #.. ###",
  F: "### #.. ##. #.. #..",
  G: ".## #.. #.# #.# .##",
  H: "#.# #.# ### #.# #.#",
  I: "### .#. .#. .#. ###",
  J: "..# ..# ..# #.# .#.",
  K: "#.# #.# ##. #.# #.#",
  L: "#.. #.. #.. #.. ###",
  M: "#...# ##.## #.#.# #...# #...#",
  N: "#..# ##.# #.## #..# #..#",
  O: ".#. #.# #.# #.# .#.",
  P: "##. #.# ##. #.. #..",
  Q: ".##. #..# #..# #.#. .#.#",
  R: "##. #.# ##. #.# #.#",
  S: ".## #.. .#. ..# ##.",
  T: "### .#. .#. .#. .#.",
  U: "#.# #.# #.# #.# ###",
  V: "#.# #.# #.# #.# .#.",
  W: "#...# #...# #.#.# ##.## #...#",
  X: "#.# #.# .#. #.# #.#",
  Y: "#.# #.# .#. .#. .#.",
  Z: "### ..# .#. #.. ###",
  0: "### #.# #.# #.# ###",
  1: ".#. ##. .#. .#. ###",
  2: "##. ..# .#. #.. ###",
  3: "##. ..# .#. ..# ##.",
  4: "#.# #.# ### ..# ..#",
  5: "### #.. ##. ..# ##.",
  6: ".## #.. ### #.# ###",
  7: "### ..# .#. .#. .#.",
  8: "### #.# ### #.# ###",
  9: "### #.# ### ..# ##.",
  " ": ".. .. .. .. ..",
  ".": ". . . . #",
  ",": ".. .. .. .# #.",
  ":": ". # . # .",
  "-": "... ... ### ... ...",
  "+": "... .#. ### .#. ...",
  "=": "... ### ... ### ...",
  "%": "#.# ..# .#. #.. #.#",
  "/": "..# ..# .#. #.. #..",
  "(": ".# #. #. #. .#",
  ")": "#. .# .# .# #.",
  "[": "## #. #. #. ##",
  "]": "## .# .# .# ##",
  "#": ".#.#. ##### .#.#. ##### .#.#.",
  _: "... ... ... ... ###",
  "'": "# # . . .",
  "&": ".#.. #.#. .#.. #.#. .#.#",
};

const HEIGHT = 5;
const UNKNOWN = "##. ..# .#. ... .#.";

export interface Lettering {
  width: number;
  height: number;
  /** Places of ink, (x, y) pairs. */
  ink: [x: number, y: number][];
}

/** Sets a line of text; each dot of a letter is `dot` pixels wide. Accents go, and characters without a glyph become "?". */
export function letter(text: string, dot: number): Lettering {
  const ink: [number, number][] = [];
  let at = 0;
  for (const character of text.normalize("NFD").replaceAll(/\p{M}/gu, "").toUpperCase()) {
    const rows = (GLYPHS[character] ?? UNKNOWN).split(" ");
    rows.forEach((row, y) => {
      for (let x = 0; x < row.length; x++) {
        if (row[x] !== "#") continue;
        for (let j = 0; j < dot; j++) for (let i = 0; i < dot; i++) ink.push([(at + x) * dot + i, y * dot + j]);
      }
    });
    at += rows[0]!.length + 1;
  }
  return { width: Math.max(0, at - 1) * dot, height: HEIGHT * dot, ink };
}
