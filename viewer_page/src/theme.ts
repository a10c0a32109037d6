// Dark or light: as the system has it, until the user says otherwise.

const NAME = "wsi-ips-theme";
const dark = window.matchMedia("(prefers-color-scheme: dark)");

function stored(): string | null {
  try {
    return localStorage.getItem(NAME);
  } catch {
    return null; // storage is switched off
  }
}

function apply(): void {
  const theme = stored() ?? (dark.matches ? "dark" : "light");
  document.documentElement.dataset["theme"] = theme;
}

export function followTheme(): void {
  apply();
  dark.addEventListener("change", apply);
}

export function switchTheme(): void {
  const next = document.documentElement.dataset["theme"] === "dark" ? "light" : "dark";
  try {
    localStorage.setItem(NAME, next);
  } catch {
    document.documentElement.dataset["theme"] = next;
    return;
  }
  apply();
}
