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
  "!": "# # # . #",
  '"': "#.# #.# ... ... ...",
  $: ".## ##. .#. .## ##.",
  "*": "... #.# .#. #.# ...",
  ";": ".. .# .. .# #.",
  "<": "..# .#. #.. .#. ..#",
  ">": "#.. .#. ..# .#. #..",
  "?": "##. ..# .#. ... .#.",
  "@": ".##. #..# #.## #... .##.",
  "\\": "#.. #.. .#. ..# ..#",
  "^": ".#. #.# ... ... ...",
  "`": "#. .# .. .. ..",
  "{": ".## .#. ##. .#. .##",
  "|": "# # # # #",
  "}": "##. .#. .## .#. ##.",
  "~": "..... .#... #.#.# ...#. .....",
};

/** What Unicode does not take apart by itself. */
const FOLDED: Record<string, string> = {
  Ø: "O",
  Æ: "AE",
  Œ: "OE",
  Ł: "L",
  Đ: "D",
  Ð: "D",
  Ħ: "H",
  Þ: "TH",
  "–": "-",
  "—": "-",
  "‘": "'",
  "’": "'",
  "“": '"',
  "”": '"',
  "⁄": "/",
};

const HEIGHT = 5;

export interface Lettering {
  width: number;
  height: number;
  /** Places of ink, (x, y) pairs. */
  ink: [x: number, y: number][];
}

/** A text as the characters that there are glyphs for: capitals without accents, "?" for those of other scripts. */
function spelled(text: string): string {
  const plain = text.normalize("NFKD").replaceAll(/\p{M}/gu, "").toUpperCase();
  return Array.from(plain, (c) => FOLDED[c] ?? (Object.hasOwn(GLYPHS, c) ? c : "?")).join("");
}

/** What pictures call a class: its name, or its number where not one letter of the name can be written. */
export function classText({ id, name }: { id: number; name: string }): string {
  return /^[?\s]*$/.test(spelled(name)) ? `class ${id}` : name;
}

/** Sets a line of text; each dot of a letter is `dot` pixels wide. */
export function letter(text: string, dot: number): Lettering {
  const ink: [number, number][] = [];
  let at = 0;
  for (const character of spelled(text)) {
    const rows = GLYPHS[character]!.split(" ");
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
