// Raw attention at a place, asked of the server: one question at a time for each run, and then the latest.

import { about, ask, type Held, type Slide } from "./api";
import { mapQuery, type View } from "./state";

interface Question {
  slide: Slide;
  at: { x: number; y: number };
  view: View;
}

export class Pointer {
  onSlide = false;
  private asking = new Set<number>();
  private next = new Map<number, Question>();
  private age = 0;

  constructor(private readonly told: (run: number, held: Held | null | "unknown") => void) {}

  /** Answers that are under way are of another slide or map by now. */
  forget(): void {
    this.age += 1;
    this.next.clear();
    this.asking.clear();
  }

  ask(run: number, slide: Slide, at: { x: number; y: number }, view: View): void {
    this.next.set(run, { slide, at, view });
    if (!this.asking.has(run)) void this.work(run, this.age);
  }

  private async work(run: number, age: number): Promise<void> {
    this.asking.add(run);
    for (let one = this.next.get(run); one && age === this.age; one = this.next.get(run)) {
      this.next.delete(run);
      const place = `x=${one.at.x.toFixed(2)}&y=${one.at.y.toFixed(2)}`;
      const asked = `${about(run, one.slide.slide_id, "value")}?${place}&${mapQuery(one.view)}`;
      let held: Held | null | "unknown" = "unknown";
      try {
        held = (await ask<{ held: Held | null }>(asked)).held;
      } catch {
        // The map or the server is gone: nothing is known of this place.
      }
      if (age === this.age) this.told(run, held);
    }
    if (age === this.age) this.asking.delete(run);
  }
}
