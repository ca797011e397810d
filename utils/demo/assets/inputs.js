// How a photo gets in: dropped, pasted, chosen from a folder, or taken with a camera. Gives files to onPhoto.

const isPhoto = (file) => file.type.startsWith("image/");

function watchPhotos(root, { onPhoto, onProblem }) {
  const drop = root.querySelector(".px-drop"), input = (what) => root.querySelector(`[data-input=${what}]`);
  const take = (files) => {
    const all = [...(files ?? [])], file = all.find(isPhoto) ?? all[0];
    if (file) onPhoto(file);
    return Boolean(file);
  };
  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  let inside = 0; // dragenter and dragleave come for each child, too
  const mark = (change) => {
    inside = Math.max(0, inside + change);
    root.toggleAttribute("data-drops", inside > 0);
  };
  root.addEventListener("dragenter", (event) => carriesFiles(event) && mark(1));
  root.addEventListener("dragleave", (event) => carriesFiles(event) && mark(-1));
  root.addEventListener("dragover", (event) => carriesFiles(event) && event.preventDefault());
  root.addEventListener("drop", (event) => {
    mark(-inside);
    if (!carriesFiles(event)) return;
    event.preventDefault();
    take(event.dataTransfer.files);
  });
  const paste = (event) => {
    if (!root.isConnected) document.removeEventListener("paste", paste);
    else if ([...(event.clipboardData?.files ?? [])].some(isPhoto) && take(event.clipboardData.files)) event.preventDefault();
  };
  document.addEventListener("paste", paste);
  drop.addEventListener("click", (event) => event.target.closest("button") || input("choose").click());
  for (const what of ["choose", "photograph"]) {
    input(what).addEventListener("change", ({ target }) => {
      take(target.files);
      target.value = ""; // the same file may be chosen again
    });
  }
  const camera = makeCamera(root.querySelector("dialog.px-camera"), { onPhoto, onProblem });
  return {
    choose: () => input("choose").click(),
    // A phone has a camera of its own behind the file chooser; elsewhere there is a small preview.
    photograph: () => (matchMedia("(pointer: coarse)").matches ? input("photograph").click() : camera.open()),
    shoot: camera.shoot,
    leave: camera.close,
  };
}

function makeCamera(dialog, { onPhoto, onProblem }) {
  const video = dialog.querySelector("video");
  let stream = null;
  const release = () => {
    stream?.getTracks().forEach((track) => track.stop());
    stream = video.srcObject = null;
  };
  dialog.addEventListener("close", release);
  return {
    async open() {
      if (!navigator.mediaDevices?.getUserMedia) {
        onProblem("The browser lends its camera to https pages and to this machine only. Choose a photo instead.");
        return;
      }
      try {
        stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
      } catch (error) {
        const isDenied = error.name === "NotAllowedError";
        onProblem(isDenied ? "The camera was not allowed. Choose a photo instead." : "No camera was found. Choose a photo instead.");
        return;
      }
      video.srcObject = stream;
      dialog.showModal();
    },
    shoot() {
      if (!video.videoWidth) return;
      const canvas = makeCanvas(video.videoWidth, video.videoHeight);
      canvas.getContext("2d").drawImage(video, 0, 0);
      dialog.close();
      canvas.toBlob((blob) => onPhoto(new File([blob], "camera.jpg", { type: "image/jpeg" })), "image/jpeg", 0.92);
    },
    close: () => dialog.close(),
  };
}

// Why a photo need not be sent at all, or nothing. Limits: upload_mb, side in pixels; null knows none.
async function problemOf(file, limits) {
  if (file.type && !isPhoto(file)) return `${file.name} is no picture. JPEG, PNG and WebP are.`;
  if (!file.size) return `${file.name} is empty.`;
  const megabytes = file.size / 2 ** 20;
  if (limits.upload_mb && megabytes > limits.upload_mb) {
    return `${file.name} has ${megabytes.toFixed(1)} MB; ${limits.upload_mb} MB are taken.`;
  }
  try {
    const { width, height } = await sizeOf(file);
    if (limits.side && Math.max(width, height) > limits.side) {
      return `${file.name} has ${width} x ${height} pixels; ${limits.side} on the longer side are taken.`;
    }
  } catch {
    return ""; // a format that the server may read
  }
  return "";
}

async function sizeOf(file) {
  const image = await createImageBitmap(file), { width, height } = image;
  image.close();
  return { width, height };
}

function limitsInWords({ upload_mb, side }) {
  const words = [upload_mb && `${upload_mb} MB`, side && `${side} pixels on the longer side`].filter(Boolean);
  return words.length ? `Up to ${words.join(", and ")}` : "";
}
