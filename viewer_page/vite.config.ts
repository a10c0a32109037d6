import { defineConfig } from "vite";

// Names without hashes: the server asks browsers to look whether a file is still the same, and the built files are
// committed, so that a name that changes with every build would only make noise.
export default defineConfig({
  base: "/page/",
  build: {
    outDir: "../wsi_ips/viewer/page",
    emptyOutDir: true,
    assetsDir: "",
    modulePreload: false,
    target: "es2022",
    rollupOptions: {
      output: { entryFileNames: "page.js", assetFileNames: "page[extname]", codeSplitting: false },
    },
  },
});
