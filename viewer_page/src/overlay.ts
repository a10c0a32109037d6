// Lines over the slide, in level-0 pixels: lesions, the chosen patch, where the other pane's pointer is.

import { svg } from "./dom";

export type Polygons = [number, number][][][];

export class Overlay {
  readonly element = svg("svg", { class: "overlay", "aria-hidden": "true" });
  private readonly moving = svg("g");
  private readonly bounds = svg("g");
  private readonly lesions = svg("g", { class: "lesions" });
  private readonly mark = svg("g");
  private readonly pointer = svg("g");

  constructor() {
    this.moving.append(this.bounds, this.lesions, this.mark, this.pointer);
    this.element.append(this.moving);
  }

  clear(): void {
    for (const group of [this.bounds, this.lesions, this.mark, this.pointer]) group.replaceChildren();
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
