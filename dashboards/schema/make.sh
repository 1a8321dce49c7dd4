#!/bin/sh
# make.sh: the JSON Schemas beside this file, from the types that Grafana publishes (npm @grafana/schema, Apache-2.0).
# Needs npm and python3. Run it to support a newer Grafana; the tests read the committed files.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 11.6.16 12.0.2; do
  cd "$work"
  rm -rf ./*
  npm init --yes > /dev/null 2>&1
  npm install --silent "@grafana/schema@$version" ts-json-schema-generator@2.9.0 typescript@5.9.3
  raw=node_modules/@grafana/schema/dist/esm/raw
  echo '{"compilerOptions": {"module": "esnext", "moduleResolution": "bundler", "skipLibCheck": true, "types": []}}' > tsconfig.json
  schema() { # schema NAME FILE TYPE: by the file's path; by the package's name the result is empty
    npx ts-json-schema-generator --tsconfig tsconfig.json --path "$raw/$2" --type "$3" --no-type-check --expose all --out "$1.json"
  }
  schema dashboard dashboard/x/dashboard_types.gen.d.ts Dashboard
  for panel in Stat Text; do
    schema "$panel.options" "composable/$(echo $panel | tr '[:upper:]' '[:lower:]')/panelcfg/x/${panel}PanelCfg_types.gen.d.ts" Options
  done
  for panel in TimeSeries StateTimeline Table Heatmap; do
    file="composable/$(echo $panel | tr '[:upper:]' '[:lower:]')/panelcfg/x/${panel}PanelCfg_types.gen.d.ts"
    schema "$panel.options" "$file" Options
    schema "$panel.custom" "$file" FieldConfig
  done
  schema tempo composable/tempo/dataquery/x/TempoDataQuery_types.gen.d.ts TempoQuery
  python3 - "$work" "$here/grafana-${version%%.*}.json" "@grafana/schema $version" <<'PYTHON'
import json, pathlib, sys

folder, out, source = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def bare(node):
    """Without prose, which is two thirds of it. `description` is also the name of a property: that is an object."""
    if isinstance(node, dict):
        return {key: bare(value) for key, value in node.items() if not (key == "description" and isinstance(value, str))}
    return [bare(item) for item in node] if isinstance(node, list) else node

kinds = [path for path in sorted(folder.glob("*.json")) if not path.name.startswith(("package", "tsconfig"))]
schemas = {path.stem.lower(): bare(json.loads(path.read_text())) for path in kinds}
pathlib.Path(out).write_text(json.dumps({"source": source, "license": "Apache-2.0", **schemas}, indent=1) + "\n")
PYTHON
  echo "wrote grafana-${version%%.*}.json"
done
