// Small pictures that wait: a browser has six connections to a server, and the slide's tiles come first.

const AT_ONCE = 2;
const PATIENCE_MS = 2500;

interface Waiting {
  image: HTMLImageElement;
  address: string;
}

const wanted = new Map<Element, string>();
let queue: Waiting[] = [];
let loading = 0;
let held = true;

const seen = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) {
      const address = wanted.get(entry.target);
      if (!entry.isIntersecting || address === undefined) continue;
      seen.unobserve(entry.target);
      wanted.delete(entry.target);
      queue.push({ image: entry.target as HTMLImageElement, address });
    }
    work();
  },
  { rootMargin: "120px" },
);

/** Load the picture once it is nearly in sight; `gone` marks one that is not there. */
export function loadQuietly(image: HTMLImageElement, address: string): void {
  wanted.set(image, address);
  seen.observe(image);
}

/** The slide is painted, or has no picture: now the small ones. */
export function release(): void {
  held = false;
  work();
}

setTimeout(release, PATIENCE_MS);

function work(): void {
  while (!held && loading < AT_ONCE) {
    const next = queue.shift();
    if (!next) return;
    if (!next.image.isConnected) continue;
    loading += 1;
    const done = (): void => {
      loading -= 1;
      work();
    };
    next.image.addEventListener("load", done, { once: true });
    next.image.addEventListener(
      "error",
      () => {
        next.image.classList.add("gone");
        done();
      },
      { once: true },
    );
    next.image.src = next.address;
  }
}
