# Installs a project's packages and looks whether each of their files is as it was packed.
set -e
mkdir /app
cd /app
for file in package.json package-lock.json SHA256SUMS; do
    busybox wget -q "http://$REGISTRY/$file"
done
npm ci --no-audit --no-fund --no-update-notifier 2>&1 | grep -o 'added [0-9]* packages'
sha256sum --quiet --check SHA256SUMS
echo "$(find node_modules -type f ! -name .package-lock.json | wc -l) files"
echo "$(find node_modules/.bin -type l -exec test -x {} \; -print | wc -l) programs"
node -p 'require("package-0").sum'
