// Runs policy/vectors/ in the WebAssembly build of the verifier and compares: node run.mjs MODULE VECTORS
//
// Only this side reads the expectations. Every vector of the files below has to have run: a module that returns nothing, or a file
// without vectors, fails.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import { isDeepStrictEqual } from "node:util";

const [modulePath, folder] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node run.mjs MODULE VECTORS");
  process.exit(2);
}

const module = new WebAssembly.Module(readFileSync(modulePath));
const imports = WebAssembly.Module.imports(module);
if (imports.length > 0) {
  fail(`the module wants from its host: ${imports.map((wanted) => `${wanted.module}.${wanted.name}`).join(", ")}`);
}

function fail(message) {
  console.error(`error: ${message}`);
  process.exit(1);
}

// What the module says of a file of vectors, and the file. Each in an instance of its own.
function run(name) {
  const contents = readFileSync(join(folder, name));
  const { push, run, at } = new WebAssembly.Instance(module).exports;
  for (const byte of Buffer.concat([Buffer.from(`${name}\0`), contents])) push(byte);
  const begun = performance.now();
  const length = run();
  const milliseconds = performance.now() - begun;
  const answer = Buffer.from(Array.from({ length }, (_, place) => at(place)));
  return { file: JSON.parse(contents), said: JSON.parse(answer), milliseconds };
}

let ran = 0;
const wrong = [];

// Compares a list of what was said with a list of what is expected; every one of them counts, and there has to be one.
function compare(name, said, expected, same = isDeepStrictEqual) {
  if (!Array.isArray(said) || said.length !== expected.length || expected.length === 0) {
    fail(`${name}: ${said?.length} of ${expected.length} vectors ran`);
  }
  expected.forEach((wanted, place) => {
    ran += 1;
    if (!same(said[place], wanted)) {
      wrong.push(`${name}, ${wanted?.name ?? place}: ${JSON.stringify(wanted)}\n  but it is ${JSON.stringify(said[place])}`);
    }
  });
}

const asExpected = (said, { expect }) =>
  said.verdict === expect.verdict
  && isDeepStrictEqual(said.failed, expect.failed)
  && isDeepStrictEqual(said.unknown, expect.unknown)
  && (expect.verdict === "accepted" || said.reasons.some((reason) => reason.includes(expect.reason)));
const evidence = run("evidence.json");
compare("evidence.json", evidence.said, evidence.file.cases, asExpected);
const applied = run("applied.json");
compare("applied.json", applied.said, applied.file.cases, asExpected);

// Left out there: what names the program and the policy.
const results = JSON.parse(readFileSync(join(folder, "ear.json"))).cases;
const byName = new Map(evidence.file.cases.map(({ name }, place) => [name, evidence.said[place]]));
compare("ear.json", results.map(({ case: name }) => {
  const ear = structuredClone(byName.get(name).ear);
  delete ear.ear_verifier_id;
  delete ear.submods.cofferdam.ear_appraisal_policy_ids;
  return ear;
}), results.map(({ ear }) => ear));

const claims = run("claims.json");
compare("claims.json", claims.said, [
  ...claims.file.accepted.map(({ report_data, tag }) => ({ report_data, tag })),
  ...claims.file.refused.map(() => null),
]);

const log = run("event-log.json");
compare("event-log.json digests", log.said[0], log.file.digests);
compare("event-log.json registers", log.said[1], log.file.registers);
compare("event-log.json refused", log.said[2], log.file.refused.map(() => false));

const ratls = run("ratls.json");
compare("ratls.json", ratls.said, ratls.file.certificates.map(({ evidence, spki }) => ({ evidence, spki })));

const operator = run("operator.json");
compare("operator.json requests", operator.said[0], operator.file.requests.map(({ signing_input }) => signing_input));
compare("operator.json sealed", operator.said[1],
  operator.file.sealed.map(({ public_key, value }) => ({ public_key, value })));
compare("operator.json headers", operator.said[2],
  [...operator.file.authorization.accepted, ...operator.file.authorization.refused.map(() => null)]);

if (wrong.length > 0) fail(`${wrong.length} of ${ran} vectors differ in WebAssembly:\n${wrong.join("\n")}`);
console.log(`${ran} vectors in WebAssembly as in the native build; `
  + `${evidence.file.cases.length + applied.file.cases.length} appraisals in `
  + `${((evidence.milliseconds + applied.milliseconds) / 1000).toFixed(1)} s`);
