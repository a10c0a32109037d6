// Lines over the slide, in level-0 pixels: lesions, the chosen patch, where the other pane's pointer is.

import type { Found } from "./api";
import { svg } from "./dom";

export type Polygons = [number, number][][][];

/** Pixels of the screen below which an object is a point. */
const SMALLEST_PX = 4;
const DENSITIES = 6;

function extent(ring: number[]): [number, number, number, number] {
  const xs = ring.filter((_, place) => place % 2 === 0);
  const ys = ring.filter((_, place) => place % 2 === 1);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

export class Overlay {
  readonly element = svg("svg", { class: "overlay", "aria-hidden": "true" });
  private readonly moving = svg("g");
  private readonly bounds = svg("g");
  private readonly found = svg("g", { class: "found" });
  private readonly lesions = svg("g", { class: "lesions" });
  private readonly mark = svg("g");
  private readonly pointer = svg("g");

  constructor() {
    this.moving.append(this.bounds, this.found, this.lesions, this.mark, this.pointer);
    this.element.append(this.moving);
  }

  clear(): void {
    for (const group of [this.bounds, this.found, this.lesions, this.mark, this.pointer]) group.replaceChildren();
  }

  /** Level-0 point (0, 0) is at (x, y) on the screen, and a level-0 pixel is `scale` wide there. */
  place(x: number, y: number, scale: number): void {
    this.moving.setAttribute("transform", `matrix(${scale} 0 0 ${scale} ${x} ${y})`);
  }

  outlines(polygons: Polygons): void {
    const rings = polygons.flat().map((ring) => `M${ring.map(([x, y]) => `${x} ${y}`).join("L")}Z`);
    const d = rings.join("");
    this.lesions.replaceChildren(
      svg("path", { d, class: "halo", "vector-effect": "non-scaling-stroke" }),
      svg("path", { d, class: "line", "vector-effect": "non-scaling-stroke" }),
    );
  }

  showOutlines(shown: boolean): void {
    this.lesions.classList.toggle("off", !shown);
  }

  /** Found objects: as they are, as points where `l0PerPx` leaves them no size, or as squares of their number. */
  objects(found: Found, l0PerPx: number): void {
    const fixed = { "vector-effect": "non-scaling-stroke" };
    if (found.cells) {
      const { l0_side: side, counts } = found.cells;
      const most = Math.max(...counts.map(([, , count]) => count));
      const levels = new Map<number, string[]>();
      for (const [col, row, count] of counts) {
        const level = Math.ceil((DENSITIES * count) / most);
        const square = `M${col * side} ${row * side}h${side}v${side}h${-side}Z`;
        levels.set(level, [...(levels.get(level) ?? []), square]);
      }
      const fill = found.classes[0]?.colour ?? "";
      this.found.replaceChildren(
        ...[...levels].map(([level, squares]) => {
          return svg("path", { d: squares.join(""), class: "density", fill, "fill-opacity": String((0.7 * level) / DENSITIES) });
        }),
      );
      return;
    }
    const shapes = found.classes.map(() => ({ rings: [] as string[], points: [] as string[] }));
    for (const { class: place, ring } of found.objects ?? []) {
      const of = shapes[place];
      if (!of) continue;
      const [left, top, right, bottom] = extent(ring);
      if (Math.max(right - left, bottom - top) < SMALLEST_PX * l0PerPx) {
        of.points.push(`M${(left + right) / 2} ${(top + bottom) / 2}l0 0`);
      } else {
        of.rings.push(`M${ring.join(" ")}Z`);
      }
    }
    this.found.replaceChildren(
      ...shapes.flatMap(({ rings, points }, place) => {
        const stroke = found.classes[place]?.colour ?? "";
        const drawn: SVGElement[] = [];
        if (rings.length) drawn.push(svg("path", { d: rings.join(""), class: "object", stroke, ...fixed }));
        if (points.length) drawn.push(svg("path", { d: points.join(""), class: "object point", stroke, ...fixed }));
        return drawn;
      }),
    );
  }

  showObjects(shown: boolean): void {
    this.found.classList.toggle("off", !shown);
  }

  /** The slide's edge, where there is no picture of it. */
  frame([width, height]: [number, number]): void {
    this.bounds.replaceChildren(this.square(0, 0, width, height, "frame"));
  }

  markPatch(patch: { l0_x: number; l0_y: number } | null, side: number): void {
    if (!patch) {
      this.mark.replaceChildren();
      return;
    }
    const at = [patch.l0_x, patch.l0_y, side, side] as const;
    this.mark.replaceChildren(this.square(...at, "mark halo"), this.square(...at, "mark line"));
  }

  pointAt(at: { x: number; y: number } | null): void {
    if (!at) {
      this.pointer.replaceChildren();
      return;
    }
    // A line without length has round ends of the stroke's width, whatever the scale.
    const d = `M${at.x} ${at.y}l0 0`;
    this.pointer.replaceChildren(
      svg("path", { d, class: "pointer halo", "vector-effect": "non-scaling-stroke" }),
      svg("path", { d, class: "pointer line", "vector-effect": "non-scaling-stroke" }),
    );
  }

  private square(x: number, y: number, width: number, height: number, kind: string): SVGElement {
    const at = { x: String(x), y: String(y), width: String(width), height: String(height) };
    return svg("rect", { ...at, class: kind, "vector-effect": "non-scaling-stroke" });
  }
}
