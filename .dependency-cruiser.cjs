/** The layering of src/, checked by `npm run check`. See docs/ARCHITECTURE.md. */
module.exports = {
  forbidden: [
    { name: "no-circular", severity: "error", from: {}, to: { circular: true } },
    {
      name: "nobody-imports-app-or-cli",
      severity: "error",
      from: { pathNot: "^src/(app|cli)/" },
      to: { path: "^src/(app|cli)/" },
    },
    {
      name: "app-does-not-import-cli",
      severity: "error",
      from: { path: "^src/app/" },
      to: { path: "^src/cli/" },
    },
    {
      name: "block-knows-neither-nbd-nor-replication",
      severity: "error",
      from: { path: "^src/block/" },
      to: { path: "^src/(nbd|replication|qmp|config)/" },
    },
    {
      name: "wire-imports-errors-only",
      severity: "error",
      from: { path: "^src/nbd/(wire/|receiver)" },
      to: { path: "^src/", pathNot: "^src/(errors|nbd/wire/)" },
    },
    {
      name: "a-primary-knows-nothing-of-the-parts-of-a-secondary",
      severity: "error",
      from: { path: "^src/replication/primary/" },
      to: { path: "^src/replication/secondary/" },
    },
    {
      name: "what-both-nodes-have-knows-neither",
      severity: "error",
      from: { path: "^src/replication/[^/]+$" },
      to: { path: "^src/replication/(primary|secondary)/" },
    },
    {
      name: "stage-machine-knows-no-io",
      severity: "error",
      from: { path: "^src/replication/stage" },
      to: { path: ".", pathNot: "^src/errors" },
    },
    {
      name: "one-importer-of-koffi",
      severity: "error",
      from: { pathNot: "^src/os/libc" },
      to: { path: "koffi" },
    },
    { name: "no-orphans", severity: "error", from: { orphan: true, pathNot: "\\.d\\.ts$" }, to: {} },
  ],
  options: {
    doNotFollow: { path: "node_modules" },
    tsPreCompilationDeps: true,
    tsConfig: { fileName: "tsconfig.json" },
  },
};
