/**
 * Seeded random numbers on the host: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The
 * n-th number depends on the key and n alone, so that a state is three integers and streams forked by a key never overlap in practice.
 */
export interface RandomState {
  key: [number, number];
  counter: number;
}

const M0 = 0xd2511f53;
const M1 = 0xcd9e8d57;
const W0 = 0x9e3779b9;
const W1 = 0xbb67ae85;

function mulHigh(a: number, b: number): number {
  const al = a & 0xffff;
  const ah = a >>> 16;
  const bl = b & 0xffff;
  const bh = b >>> 16;
  const mid = ah * bl + ((al * bl) >>> 16);
  const mid2 = al * bh + (mid & 0xffff);
  return (ah * bh + Math.floor(mid / 65536) + Math.floor(mid2 / 65536)) >>> 0;
}

/** Ten rounds of Philox on a counter of four words and a key of two, into `out`. */
export function philox(out: Uint32Array, c0: number, c1: number, c2: number, c3: number, k0: number, k1: number): void {
  for (let round = 0; round < 10; round++) {
    const h0 = mulHigh(M0, c0);
    const l0 = Math.imul(M0, c0) >>> 0;
    const h1 = mulHigh(M1, c2);
    const l1 = Math.imul(M1, c2) >>> 0;
    c0 = (h1 ^ c1 ^ k0) >>> 0;
    c1 = l1;
    c2 = (h0 ^ c3 ^ k1) >>> 0;
    c3 = l0;
    k0 = (k0 + W0) >>> 0;
    k1 = (k1 + W1) >>> 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

export class Random {
  #key: [number, number];
  /** Words drawn so far. */
  #counter = 0;
  #block = -1;
  readonly #words = new Uint32Array(4);

  /** @param seed a whole number; its low 53 bits count. */
  constructor(seed: number) {
    if (!Number.isSafeInteger(seed)) throw new Error(`Random: seed must be a whole number; got ${seed}`);
    const positive = seed < 0 ? seed + Number.MAX_SAFE_INTEGER : seed;
    this.#key = [positive >>> 0, Math.floor(positive / 2 ** 32) >>> 0];
  }

  /** 32 random bits. */
  bits(): number {
    const block = Math.floor(this.#counter / 4);
    if (block !== this.#block) {
      philox(this.#words, block >>> 0, Math.floor(block / 2 ** 32), 0, 0, this.#key[0], this.#key[1]);
      this.#block = block;
    }
    return this.#words[this.#counter++ % 4]!;
  }

  /** Uniform in [low, high), 24 bits fine so that it is exact in f32. */
  uniform(low = 0, high = 1): number {
    return low + ((this.bits() >>> 8) / 2 ** 24) * (high - low);
  }

  /** Standard normal (Box-Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Whole number in 0..n-1. */
  int(n: number): number {
    return Math.floor(this.uniform() * n);
  }

  /** Fisher-Yates, in place. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.int(i + 1);
      [items[i], items[j]] = [items[j]!, items[i]!];
    }
    return items;
  }

  /** A stream of its own for a name or number: the same key gives the same stream whatever was drawn here before. */
  fork(key: string | number): Random {
    let hash = 0x811c9dc5;
    for (const c of String(key)) hash = Math.imul(hash ^ c.charCodeAt(0), 0x01000193) >>> 0;
    const child = new Random(0);
    philox(child.#words, hash, String(key).length, 1, 0, this.#key[0], this.#key[1]);
    child.#key = [child.#words[0]!, child.#words[1]!];
    return child;
  }

  get state(): RandomState {
    return { key: [...this.#key], counter: this.#counter };
  }

  restore(state: RandomState): void {
    this.#key = [state.key[0], state.key[1]];
    this.#counter = state.counter;
    this.#block = -1;
  }
}
