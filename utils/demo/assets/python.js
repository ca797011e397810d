// "Copy as Python": a program that asks the same. Every string of it is JSON, which is also a literal of Python.

function asPython({ model, photo, turns, chosen, threshold }) {
  const text = JSON.stringify, options = threshold === 0.5 ? "" : `, mask_threshold=${threshold}`;
  const lines = [
    "from model.predictor import PixelLMPredictor",
    "",
    `predictor = PixelLMPredictor.from_pretrained(${text(model)})`,
    `photo = ${text(photo.name)}`,
  ];
  const turn = turns[chosen];
  if (turn.kind === "names") {
    lines.push(`reply = predictor.segment(photo, [${namesOf(turn.question).map((name) => text(name)).join(", ")}]${options})`);
  } else {
    lines.push("predictor.set_image(photo)");
    const asked = turns.slice(0, chosen + 1).filter(({ kind }) => kind === "ask");
    asked.forEach(({ question }, index) => {
      lines.push(`reply = predictor.ask(${text(question)}${index ? ", follows=True" : ""}${options})`);
    });
  }
  lines.push(
    "print(reply.text)",
    "for target in reply.targets:",
    "    print(target.phrase, target.score, target.mask.shape)",
    'reply.save("answer.png", photo)',
    ""
  );
  return lines.join("\n");
}

// One name per line or comma.
const namesOf = (question) => question.split(/[\n,]/).map((name) => name.trim()).filter(Boolean);
