/**
 * The things in procedural scenes: outline and surface of each class, and clutter. Everything is a function of (u, v), the
 * place in the thing's own frame, where it fills the circle of radius 1.
 */
import type { Random } from "../../engine/random.ts";

export type Colour = [red: number, green: number, blue: number];

/** Signed distance to the outline, in radii; negative inside. Exact near the outline only, which is where it is used. */
export type Outline = (u: number, v: number) => number;

/** How much of the second colour shows (0..1), and the brightness (around 1). */
export type Surface = (u: number, v: number) => [mix: number, light: number];

export interface Thing {
  outline: Outline;
  surface: Surface;
}

/** Each class draws its proportions and texture from `random`; colour, size and turn are the scene's. */
export const things: Record<string, (random: Random) => Thing> = { ball, triangle, star, ring, crate, leaf };

function ball(random: Random): Thing {
  const squeeze = random.uniform(0.85, 1);
  const spots = random.uniform(3, 6);
  const patch = random.uniform(0.15, 0.45);
  const [shineU, shineV] = [random.uniform(-0.5, 0.5), random.uniform(-0.5, 0.5)];
  return {
    outline: (u, v) => (Math.hypot(u, v / squeeze) - 1) * squeeze,
    surface: (u, v) => {
      const dome = Math.sqrt(Math.max(0, 1 - u * u - v * v));
      const shine = Math.max(0, 1 - 6 * ((u - shineU) ** 2 + (v - shineV) ** 2));
      return [
        Math.sin(spots * u + 1) * Math.sin(spots * v) > 1 - patch ? 0.8 : 0,
        0.55 + 0.5 * dome + 0.6 * shine * shine,
      ];
    },
  };
}

function triangle(random: Random): Thing {
  const stretch = random.uniform(0.75, 1);
  const cells = random.uniform(2, 4);
  const strength = random.uniform(0.3, 0.8);
  return {
    outline: (u, v) => {
      const w = v / stretch;
      return Math.max(-u, 0.5 * u + 0.866 * w, 0.5 * u - 0.866 * w) * stretch - 0.5 * stretch;
    },
    surface: (u, v) => {
      const dark = (Math.floor(cells * (u + 2)) + Math.floor(cells * (v + 2))) % 2 === 0;
      return [dark ? strength : 0, 0.8 + 0.3 * u];
    },
  };
}

function star(random: Random): Thing {
  const points = 5;
  const half = Math.PI / points;
  const inner = random.uniform(0.4, 0.55);
  const [tipU, notchU, notchV] = [1, inner * Math.cos(half), inner * Math.sin(half)];
  const [edgeU, edgeV] = [notchU - tipU, notchV];
  const length = Math.hypot(edgeU, edgeV);
  const glow = random.uniform(0.3, 0.9);
  return {
    outline: (u, v) => {
      // One tenth of the star, from a tip to a notch, stands for all.
      const turns = Math.atan2(v, u) / (2 * half);
      const angle = Math.abs(turns - Math.round(turns)) * 2 * half;
      const r = Math.hypot(u, v);
      const [pu, pv] = [r * Math.cos(angle) - tipU, r * Math.sin(angle)];
      return (pv * -edgeU + pu * edgeV) / length;
    },
    surface: (u, v) => {
      const r = Math.hypot(u, v);
      const turns = Math.atan2(v, u) / (2 * half);
      // Each point of the star has a lit and a dark side, as a folded one.
      const side = turns - Math.round(turns) > 0 ? 0.16 : -0.16;
      return [glow * Math.max(0, 1 - 1.6 * r), 0.9 + side];
    },
  };
}

function ring(random: Random): Thing {
  const half = random.uniform(0.16, 0.24);
  const parts = 2 * (3 + random.int(4));
  const strength = random.uniform(0.3, 1);
  return {
    outline: (u, v) => Math.abs(Math.hypot(u, v) - (1 - half)) - half,
    surface: (u, v) => {
      const round = 1 - (Math.abs(Math.hypot(u, v) - (1 - half)) / half) ** 2;
      const part = Math.floor(((Math.atan2(v, u) / Math.PI + 1) / 2) * parts);
      return [part % 2 === 0 ? strength : 0, 0.65 + 0.5 * Math.max(0, round)];
    },
  };
}

function crate(random: Random): Thing {
  const [width, height] = [0.8, random.uniform(0.45, 0.8)];
  const stripes = random.uniform(4, 8);
  const strength = random.uniform(0.35, 1);
  const frame = 0.14;
  return {
    outline: (u, v) => Math.max(Math.abs(u) - width, Math.abs(v) - height),
    surface: (u, v) => {
      const rim = Math.max(Math.abs(u) - width, Math.abs(v) - height) > -frame;
      return [!rim && Math.floor((u + 2) * stripes) % 2 === 0 ? strength : 0, rim ? 0.72 : 1];
    },
  };
}

function leaf(random: Random): Thing {
  const bow = random.uniform(0.7, 1.1);
  const radius = Math.hypot(1, bow);
  const ribs = random.uniform(4, 7);
  const strength = random.uniform(0.3, 0.8);
  return {
    outline: (u, v) => Math.max(Math.hypot(u, v - bow), Math.hypot(u, v + bow)) - radius,
    surface: (u, v) => {
      const vein = Math.abs(v) < 0.035;
      const rib = ((u - Math.abs(v) + 4) * ribs) % 1 < 0.18;
      return [vein ? 1 : rib ? strength : 0, v > 0 ? 0.95 : 0.78];
    },
  };
}

/** Things of no class: sticks, dots and squiggles, thinner than any object. `size` is the image's. */
export function clutter(random: Random): { thing: Thing; radius: number } {
  const surface: Surface = () => [0, 0.9];
  const kind = random.int(3);
  if (kind === 0) {
    const thickness = random.uniform(0.03, 0.08);
    return {
      radius: random.uniform(0.15, 0.4),
      thing: { outline: (u, v) => Math.max(Math.abs(v) - thickness, Math.abs(u) - 1), surface },
    };
  }
  if (kind === 1)
    return { radius: random.uniform(0.012, 0.03), thing: { outline: (u, v) => Math.hypot(u, v) - 1, surface } };
  const [waves, height] = [random.uniform(4, 9), random.uniform(0.15, 0.35)];
  return {
    radius: random.uniform(0.12, 0.3),
    thing: {
      outline: (u, v) =>
        Math.max(Math.abs(v - height * Math.sin(waves * u)) / Math.hypot(1, waves * height) - 0.035, Math.abs(u) - 1),
      surface,
    },
  };
}
