/** A setting that holds while a function runs: recording on the tape, precision. */
export class Mode<V> {
  #value: V;

  constructor(value: V) {
    this.#value = value;
  }

  get value(): V {
    return this.#value;
  }

  /** Runs `fn` with another value. Of an async function it holds until its promise settles; two such must not interleave. */
  during<T>(value: V, fn: () => T): T {
    const before = this.#value;
    this.#value = value;
    let later = false;
    try {
      const result = fn();
      if (result instanceof Promise) {
        later = true;
        return result.finally(() => {
          this.#value = before;
        }) as T;
      }
      return result;
    } finally {
      if (!later) this.#value = before;
    }
  }
}
